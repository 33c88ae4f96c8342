#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "select/check/runs.hpp"

namespace epistle::check {
namespace {

/// `bash -c "srun bash -c '...'"`: deeper is nobody's script.
constexpr int kMaxNestedScripts = 3;

Setting to_setting(const std::pair<std::string, LinedText>& variable) {
  Setting setting;
  setting.name = variable.first;
  setting.flag = variable.first;
  setting.values = {variable.second.bytes};
  setting.line = variable.second.line();
  setting.known_value = variable.second.known;
  return setting;
}

/// What a script inherits. A '$' in a value is somebody else's to replace.
ShellVariables inherited_of(const std::vector<Setting>& environment) {
  ShellVariables variables;
  for (const Setting& setting : environment) {
    if (!setting.known_value || setting.value().find('$') != std::string_view::npos) continue;
    LinedText value;
    for (const char byte : setting.value()) value.add(byte, setting.line);
    variables.emplace_back(setting.name, std::move(value));
  }
  return variables;
}

bool script_holds_options(const LinedText& text) {
  return text.bytes.starts_with("--") || text.bytes.find(" --") != std::string::npos ||
         text.bytes.find("\n--") != std::string::npos;
}

/// The value of "#SBATCH --name=value" or "--name value".
std::string_view directive_value(std::string_view text, std::string_view name) {
  const std::size_t at = text.find(name);
  if (at == std::string_view::npos) return {};
  std::string_view value = text.substr(at + name.size());
  if (value.empty() || (value.front() != '=' && value.front() != ' ')) return {};
  value.remove_prefix(1);
  return value.substr(0, value.find_first_of(" \t\r#"));
}

struct BatchJob {
  std::optional<std::int64_t> num_nodes;
  std::optional<std::int64_t> tasks_per_node;
};

BatchJob read_directives(ConfigFile& file, const std::vector<LinedText>& directives) {
  BatchJob job;
  for (const LinedText& directive : directives) {
    const std::string_view text = directive.bytes;
    for (const std::string_view name : {"--nodes", "-N"}) {
      if (const auto value = parse_whole(directive_value(text, name))) job.num_nodes = value;
    }
    if (const auto value = parse_whole(directive_value(text, "--ntasks-per-node"))) job.tasks_per_node = value;
    for (const std::string_view name : {"--gres", "--constraint", "--gpus-per-node", "-C"}) {
      const std::string hardware = find_hardware_name(directive_value(text, name));
      if (hardware.empty()) continue;
      file.hardware = hardware;
      file.hardware_line = directive.line();
    }
  }
  return job;
}

/// Where torchrun does not say it, the batch job does.
void apply_job(RunConfig& run, const BatchJob& job) {
  const bool one_task_per_gpu = job.tasks_per_node.value_or(0) > 1 && !run.gpus_per_node && !run.num_ranks;
  if (one_task_per_gpu) run.gpus_per_node = job.tasks_per_node;
  if (!run.num_nodes && run.gpus_per_node) run.num_nodes = job.num_nodes;
}

/// HybridEP built in the same script, without its flag for several nodes.
void note_build(ConfigFile& file, const ShellScript& script) {
  bool hybrid = false;
  for (const ShellCommand& command : script.commands) {
    bool builds = false;
    bool flag = false;
    for (std::size_t idx = 0; idx < command.words.size(); ++idx) {
      const std::string& word = command.words[idx].bytes;
      hybrid = hybrid || word.find("hybrid-ep") != std::string::npos;
      const bool install =
          word == "install" && idx > 0 && command.words[idx - 1].bytes.find("pip") != std::string::npos;
      builds = builds || word.ends_with("setup.py") || install;
      flag = flag || word == "HYBRID_EP_MULTINODE=1";
    }
    for (const auto& [name, value] : command.environment) {
      if (name != "HYBRID_EP_MULTINODE") continue;
      hybrid = true;  // nothing else reads it
      flag = value.bytes == "1";
    }
    if (hybrid && builds && !flag) file.plain_hybridep_build_line = command.words.front().line();
  }
}

void read_nested(ConfigFile& file, const LinedText& text, const std::vector<Setting>& environment, int depth);

void script_read_command(ConfigFile& file, const ShellCommand& command, const BatchJob& job,
                         const std::vector<Setting>& environment, int depth) {
  std::vector<Setting> all = environment;
  for (const auto& variable : command.environment) all.push_back(to_setting(variable));
  for (const LinedText& word : command.words) {
    const bool script =
        script_holds_options(word) && word.bytes.find(' ') != std::string::npos && !word.bytes.starts_with("--");
    if (script && depth < kMaxNestedScripts) read_nested(file, word, all, depth + 1);
  }
  RunConfig run = read_words(command.words);
  if (run.engine == Engine::kUnknown) return;
  run.complete = run.complete && command.complete;
  all.insert(all.end(), run.environment.begin(), run.environment.end());
  run.environment = std::move(all);
  apply_job(run, job);
  if (!run.hardware.empty() && file.hardware.empty()) {
    file.hardware = run.hardware;
    file.hardware_line = run.line;
  }
  std::vector<RunConfig> rollouts = take_rollout_runs(run);
  file.runs.push_back(std::move(run));
  for (RunConfig& rollout : rollouts) file.runs.push_back(std::move(rollout));
}

Setting lost_setting(const LinedText& word, std::string flag) {
  Setting setting;
  setting.flag = std::move(flag);
  setting.line = word.line();
  return setting;
}

/// The flag of the first word where a command is nothing but options.
std::string option_in_front(const ShellCommand& command) {
  const std::string& word = command.words.front().bytes;
  return word.starts_with("--") ? word.substr(0, word.find('=')) : std::string();
}

/// "\\ " in place of a line's end is a word of one space.
const LinedText* broken_backslash(const ShellCommand& command) {
  const LinedText& last = command.words.back();
  return last.bytes == " " || last.bytes == "\t" ? &last : nullptr;
}

/// A piece of a script that only gathers options: they are one run.
void read_values(ConfigFile& file, const ShellScript& script, const std::vector<Setting>& environment) {
  std::vector<LinedText> words;
  for (const LinedText& value : script.values) {
    if (!script_holds_options(value)) {
      if (!words.empty() || value.bytes.starts_with('-')) words.push_back(value);
      continue;
    }
    for (const ShellCommand& command : parse_shell(value, file.name).commands) {
      words.insert(words.end(), command.words.begin(), command.words.end());
    }
  }
  RunConfig run = read_words(words);
  if (run.engine == Engine::kUnknown) return;
  run.complete = false;
  run.environment = environment;
  for (const auto& variable : script.exports) run.environment.push_back(to_setting(variable));
  file.runs.push_back(std::move(run));
}

/// Whether what stands below a command is a script that it runs, or writes to be run.
bool is_here_script(const ShellCommand& command, std::string_view text) {
  constexpr std::array<std::string_view, 7> kShells = {"bash", "sh", "zsh", "sbatch", "qsub", "bsub", "ssh"};
  const std::string_view first = text.substr(0, text.find('\n'));
  if (first.starts_with("#!") && first.find("sh") != std::string_view::npos) return true;
  return std::any_of(command.words.begin(), command.words.end(), [&](const LinedText& word) {
    const std::string_view name = std::string_view(word.bytes).substr(word.bytes.rfind('/') + 1);
    return std::find(kShells.begin(), kShells.end(), name) != kShells.end();
  });
}

void read_here_scripts(ConfigFile& file, const ShellScript& script, std::size_t command_idx,
                       const std::vector<Setting>& environment, int depth) {
  if (depth >= kMaxNestedScripts) return;
  const ShellCommand& command = script.commands[command_idx];
  for (const HereDocument& document : script.here_documents) {
    if (document.command != command_idx || !is_here_script(command, document.text.bytes)) continue;
    std::vector<Setting> all = environment;
    for (const auto& variable : command.environment) all.push_back(to_setting(variable));
    read_nested(file, document.text, all, depth + 1);
  }
}

/// Lines of options and nothing else: one run, with a line for each option.
bool is_option_list(const ShellScript& script) {
  return script.commands.size() > 1 &&
         std::all_of(script.commands.begin(), script.commands.end(),
                     [](const auto& command) { return !option_in_front(command).empty(); });
}

void read_option_list(ConfigFile& file, const ShellScript& script, const std::vector<Setting>& environment) {
  ShellCommand joined;
  for (const ShellCommand& command : script.commands) {
    joined.words.insert(joined.words.end(), command.words.begin(), command.words.end());
    joined.complete = joined.complete && command.complete;
  }
  script_read_command(file, joined, {}, environment, kMaxNestedScripts);
}

void read_nested(ConfigFile& file, const LinedText& text, const std::vector<Setting>& environment, int depth) {
  const ShellScript script = parse_shell(text, file.name, inherited_of(environment));
  const BatchJob job = read_directives(file, script.directives);
  const std::size_t first = file.runs.size();
  bool started = false;
  const bool list = is_option_list(script);
  if (list) read_option_list(file, script, environment);
  for (std::size_t idx = 0; idx < script.commands.size() && !list; ++idx) {
    const ShellCommand& command = script.commands[idx];
    const std::string flag = option_in_front(command);
    if (started && !flag.empty()) {
      file.runs.back().lost.push_back(lost_setting(command.words.front(), flag));
      continue;
    }
    const std::size_t before = file.runs.size();
    script_read_command(file, command, job, environment, depth);
    started = file.runs.size() > before && flag.empty();
    const LinedText* const backslash = broken_backslash(command);
    if (started && backslash != nullptr) file.runs.back().lost.push_back(lost_setting(*backslash, "\\"));
    read_here_scripts(file, script, idx, environment, depth);
  }
  if (file.runs.size() == first && depth == 0) read_values(file, script, environment);
  if (depth == 0) note_build(file, script);
  for (std::size_t idx = first; idx < file.runs.size(); ++idx) {
    RunConfig& run = file.runs[idx];
    for (const auto& variable : script.plain) run.unexported.push_back(to_setting(variable));
    for (const auto& variable : script.exports) {
      if (variable.second.line() > run.line) run.unexported.push_back(to_setting(variable));
    }
  }
}

}  // namespace

void read_script_runs(ConfigFile& file, const LinedText& text, const std::vector<Setting>& environment) {
  read_nested(file, text, environment, 0);
}

}  // namespace epistle::check
