// What a configuration says, whatever it was written as: the options and the environment of each run in it, with lines.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace epistle::check {

enum class Engine : std::int32_t { kUnknown, kMegatron, kVllm, kSglang };

[[nodiscard]] std::string_view to_string(Engine engine) noexcept;

struct Setting {
  std::string name;  ///< "moe-token-dispatcher-type": no dashes in front, no underscores
  std::string flag;  ///< as it was written
  std::vector<std::string> values;
  std::int32_t line = 0;
  bool known_value = true;     ///< false where a value depends on what only a run knows ("$1", "$(hostname)")
  bool assumed_value = false;  ///< a default that a run may replace
  std::int32_t scope = 0;      ///< settings of one map of a YAML file, or of one command, have the same

  [[nodiscard]] std::string_view value() const { return values.empty() ? std::string_view() : values.front(); }
};

/// What kind of front end reads the options.
enum class Dialect : std::int32_t {
  kCommandLine,   ///< the engine's own
  kBridgeScript,  ///< the scripts of Megatron-Bridge: underscores, and the backend option sets the type
  kYaml,
  kPython,  ///< a recipe: what it does not set, the one that it starts from may have set
};

/// One run.
struct RunConfig {
  Engine engine = Engine::kUnknown;
  Dialect dialect = Dialect::kCommandLine;
  std::int32_t line = 0;
  std::vector<Setting> options;
  std::vector<Setting> environment;
  std::vector<Setting> unexported;  ///< assigned in the script, but not handed to the run
  std::vector<Setting> lost;        ///< options behind a line that does not go on: commands of their own
  bool complete = true;             ///< false where options may come from elsewhere ("$@", a base recipe)
  std::string program;              ///< script or module, or empty
  std::optional<std::int64_t> gpus_per_node;
  std::optional<std::int64_t> num_nodes;
  std::optional<std::int64_t> num_ranks;  ///< said directly
  bool assumed_size = false;              ///< these are defaults that a run may replace
  std::string hardware;                   ///< a preset that the run names

  /// Changes to a recipe from elsewhere, by the names of fields.
  [[nodiscard]] bool is_recipe() const noexcept { return dialect == Dialect::kYaml || dialect == Dialect::kPython; }
  /// Scripts that generate, serve, convert or compare run forward passes only, of a model that a checkpoint describes.
  [[nodiscard]] bool only_infers() const noexcept;
  /// The last setting of that name, which is the one that counts; null where there is none.
  [[nodiscard]] const Setting* find(std::string_view name) const noexcept;
  [[nodiscard]] const Setting* find_environment(std::string_view name) const noexcept;
  [[nodiscard]] bool has(std::string_view name) const noexcept;  ///< given and not false
  /// Nothing where it is not given, not a number or not known.
  [[nodiscard]] std::optional<std::int64_t> number(std::string_view name) const noexcept;
  [[nodiscard]] std::string_view text(std::string_view name, std::string_view otherwise = {}) const noexcept;
  [[nodiscard]] std::optional<std::int64_t> world_size() const noexcept;
};

struct ConfigFile {
  std::string name;
  std::vector<RunConfig> runs;
  std::string hardware;  ///< a preset named in it; empty = none
  std::int32_t hardware_line = 0;
  std::int32_t plain_hybridep_build_line = 0;  ///< where HybridEP is built without HYBRID_EP_MULTINODE=1
};

[[nodiscard]] std::optional<std::int64_t> parse_whole(std::string_view text) noexcept;
[[nodiscard]] bool is_false(std::string_view value) noexcept;

/// Largest file that is read.
inline constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 20;

/// Reads a shell script, a list of flags, YAML or JSON. `name` is for messages, and its ending tells the kind. Throws
/// kCorruptInput that names file and line.
[[nodiscard]] ConfigFile parse_config(std::string_view text, const std::string& name);

/// Throws kNotFound where there is no such file; else as parse_config.
[[nodiscard]] ConfigFile read_config(const std::string& path);

}  // namespace epistle::check
