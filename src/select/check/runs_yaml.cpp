#include <algorithm>
#include <cctype>
#include <cstddef>
#include <functional>
#include <string>

#include "select/check/flag_names.hpp"
#include "select/check/runs.hpp"
#include "select/check/yaml_sections.hpp"

namespace epistle::check {
namespace {

constexpr int kYamlMaxDepth = 64;
/// Aliases can name the same node again and again.
constexpr int kMaxVisits = 200'000;

bool yaml_concerns_experts(std::string_view name) {
  return name.starts_with("moe-") || name.find("deepep") != std::string_view::npos ||
         name.find("hybridep") != std::string_view::npos || name.find("all2all") != std::string_view::npos ||
         name.find("a2a-backend") != std::string_view::npos || name.find("expert-parallel") != std::string_view::npos ||
         name.find("expert-model-parallel") != std::string_view::npos || name.ends_with("parallel-size");
}

bool yaml_holds_options(std::string_view text) {
  return text.starts_with("--") || text.find(" --") != std::string_view::npos ||
         text.find("\n--") != std::string_view::npos;
}

/// A sentence where a name belongs, "true_for_tuning": the file describes options, and sets none.
bool is_prose(std::string_view name, std::string_view value) {
  constexpr std::ptrdiff_t kBlanks = 2;
  const bool takes_name = name.ends_with("-backend") || name.ends_with("-mode") || name.ends_with("-type");
  return (takes_name && std::count(value.begin(), value.end(), ' ') >= kBlanks) || value.starts_with("true_") ||
         value.starts_with("false_");
}

/// One document: its fields are one run, and every command line in it another.
class Document {
 public:
  Document(ConfigFile& file, const YamlTree& tree) : file_(file), tree_(tree) {}

  void run(std::size_t root) {
    visit(root, 0);
    forget_ambiguous_variables();
    const std::size_t first = file_.runs.size();
    for (auto& options : split_sections(options_, scopes_, merged_)) add_fields(std::move(options));
    for (const LinedText& script : scripts_) read_script_runs(file_, script, environment_);
    for (const auto& words : word_lists_) {
      RunConfig run = read_words(words);
      if (run.engine == Engine::kUnknown) continue;
      run.environment.insert(run.environment.begin(), environment_.begin(), environment_.end());
      file_.runs.push_back(std::move(run));
    }
    drop_shadowed(first);
  }

 private:
  void add_fields(std::vector<Setting> options) {
    RunConfig fields;
    fields.dialect = Dialect::kYaml;
    fields.options = std::move(options);
    fields.complete = true;
    fields.engine = guess_engine(fields.options);
    fields.num_nodes = num_nodes_;
    fields.gpus_per_node = gpus_per_node_;
    fields.num_ranks = num_ranks_;
    if (!fields.options.empty()) fields.line = fields.options.front().line;
    if (fields.engine == Engine::kUnknown) return;
    // Recipes of Megatron-Bridge start from a base that is not in the file; a config of vLLM or SGLang is whole.
    if (fields.engine == Engine::kMegatron) fields.complete = false;
    for (Setting& setting : fields.options) setting.name = canonical_name(fields.engine, setting.name);
    if (fields.engine != Engine::kMegatron) take_back(fields.options);
    fields.environment = environment_;
    file_.runs.push_back(std::move(fields));
  }

  /// To an engine that has all its options here, "name: null" is as good as none.
  static void take_back(std::vector<Setting>& options) {
    std::vector<Setting> kept;
    for (Setting& setting : options) {
      const bool null = setting.values.size() == 1 && setting.values.front() == "null";
      if (null) std::erase_if(kept, [&](const Setting& other) { return other.name == setting.name; });
      if (!null) kept.push_back(std::move(setting));
    }
    options = std::move(kept);
  }

  /// One value for prefill and another for decode: which is a run's own is not told.
  void forget_ambiguous_variables() {
    for (Setting& variable : environment_) {
      for (const Setting& other : environment_) {
        if (other.name == variable.name && other.values != variable.values) variable.known_value = false;
      }
    }
  }

  /// A field such as "model:" beside a command line is none of a run by itself.
  void drop_shadowed(std::size_t first) {
    if (file_.runs.size() < first + 2 || file_.runs[first].dialect != Dialect::kYaml) return;
    const auto& options = file_.runs[first].options;
    const bool experts =
        std::any_of(options.begin(), options.end(), [](const Setting& s) { return yaml_concerns_experts(s.name); });
    if (!experts) file_.runs.erase(file_.runs.begin() + static_cast<std::ptrdiff_t>(first));
  }

  void visit(std::size_t index, int depth) {
    if (depth > kYamlMaxDepth || ++visits_ > kMaxVisits) return;
    const YamlNode& node = tree_.at(index);
    if (node.kind == YamlKind::kMap) {
      visit_map(node, depth);
      scope_ = scopes_[static_cast<std::size_t>(scope_)].parent;
    } else if (node.kind == YamlKind::kSequence) {
      visit_sequence(node, depth);
    } else if (node.kind == YamlKind::kScalar && yaml_holds_options(node.text)) {
      add_script(node);
    }
  }

  void visit_map(const YamlNode& node, int depth) {
    scopes_.push_back({.parent = scope_, .node = static_cast<std::size_t>(&node - tree_.nodes.data())});
    const auto scope = static_cast<std::int32_t>(scopes_.size() - 1);
    scope_ = scope;
    const bool joined = join_container(node);
    // What is merged in comes first, so that the map's own fields count.
    for (const bool merged : {true, false}) {
      for (std::size_t idx = 0; idx + 1 < node.children.size(); idx += 2) {
        const YamlNode& key = tree_.at(node.children[idx]);
        if (key.kind != YamlKind::kScalar || (key.text == "<<") != merged) continue;
        if (joined && is_container_key(key.text)) continue;
        if (merged) note_merged(node.children[idx + 1]);
        visit_field(key, node.children[idx + 1], scope, depth);
      }
    }
    add_named_variable(node);
  }

  void note_merged(std::size_t value_index) {
    const YamlNode& value = tree_.at(value_index);
    if (value.kind == YamlKind::kMap) merged_.push_back(static_cast<std::size_t>(&value - tree_.nodes.data()));
    if (value.kind != YamlKind::kSequence) return;
    for (const std::size_t item : value.children) {
      const YamlNode& map = tree_.at(item);
      if (map.kind == YamlKind::kMap) merged_.push_back(static_cast<std::size_t>(&map - tree_.nodes.data()));
    }
  }

  void visit_field(const YamlNode& key, std::size_t value_index, std::int32_t scope, int depth) {
    const YamlNode& value = tree_.at(value_index);
    std::string name = plain_key(key.text);
    // "model.moe_token_dispatcher_type: flex": the field of a map that is named here.
    if (const std::size_t dot = name.rfind('.'); dot != std::string::npos && is_option_key(name.substr(dot + 1))) {
      constexpr std::int32_t kFirstNamed = 1 << 24;
      scope = kFirstNamed + static_cast<std::int32_t>(std::hash<std::string>{}(name.substr(0, dot)) % kFirstNamed);
      name.erase(0, dot + 1);
    }
    if (value.kind == YamlKind::kScalar) read_size(name, value);
    if (is_variable_name(key.text) && value.kind == YamlKind::kScalar) {
      environment_.push_back(make_setting(key, key.text, {value.text}, 0));
      return;
    }
    const bool option = key.text != "<<" && is_option_key(name);
    if (option && value.kind == YamlKind::kScalar && is_prose(name, value.text)) return;
    if (option && value.kind == YamlKind::kScalar && !(yaml_holds_options(value.text) && value.block)) {
      options_.push_back(make_setting(key, name, {value.text}, scope));
      return;
    }
    if (option && value.kind == YamlKind::kNull) {
      // It takes back what a base or a merge has said.
      options_.push_back(make_setting(key, name, {"null"}, scope));
      return;
    }
    if (option && value.kind == YamlKind::kSequence && is_scalar_list(value) && !starts_with_option(value)) {
      std::vector<std::string> values;
      for (const std::size_t item : value.children) values.push_back(tree_.at(item).text);
      options_.push_back(make_setting(key, name, std::move(values), scope));
      return;
    }
    visit(value_index, depth + 1);
  }

  static bool is_container_key(std::string_view key) {
    return key == "command" || key == "args" || key == "entrypoint";
  }

  /// A container's command and its arguments are one command line, in two lists. Without a command it is that of the
  /// image, of which options tell the engine.
  bool join_container(const YamlNode& node) {
    const YamlNode* const program =
        find_words(node, "entrypoint") != nullptr ? find_words(node, "entrypoint") : find_words(node, "command");
    const YamlNode* arguments = find_words(node, "args");
    if (arguments == nullptr && find_words(node, "entrypoint") != nullptr) arguments = find_words(node, "command");
    if (arguments == nullptr || (program == nullptr && starts_with_option(*arguments))) return false;
    std::vector<LinedText> words;
    if (program != nullptr) {
      for (const std::size_t item : program->children) add_words(words, tree_.at(item));
    }
    for (const std::size_t item : arguments->children) {
      const bool model = program == nullptr && item == arguments->children.front();
      if (!model) add_words(words, tree_.at(item));
    }
    if (words.empty()) return false;
    word_lists_.push_back(std::move(words));
    return true;
  }

  /// The field of that name where it is a list of words; null where it is not there, or holds scripts.
  [[nodiscard]] const YamlNode* find_words(const YamlNode& node, std::string_view name) const {
    for (std::size_t idx = 0; idx + 1 < node.children.size(); idx += 2) {
      const YamlNode& list = tree_.at(node.children[idx + 1]);
      if (tree_.at(node.children[idx]).text != name || list.kind != YamlKind::kSequence || !is_scalar_list(list)) {
        continue;
      }
      const bool scripts = std::any_of(list.children.begin(), list.children.end(), [&](std::size_t item) {
        const std::string& text = tree_.at(item).text;
        return text.find('\n') != std::string::npos || (text.find(' ') != std::string::npos && !text.starts_with("--"));
      });
      return scripts ? nullptr : &list;
    }
    return nullptr;
  }

  void visit_sequence(const YamlNode& node, int depth) {
    if (!is_scalar_list(node)) {
      for (const std::size_t item : node.children) visit(item, depth + 1);
      return;
    }
    std::vector<LinedText> words;
    bool flags = false;
    for (const std::size_t item : node.children) {
      const YamlNode& scalar = tree_.at(item);
      if (scalar.text.find('\n') != std::string::npos ||
          (yaml_holds_options(scalar.text) && scalar.text.find(' ') != std::string::npos &&
           !scalar.text.starts_with("--"))) {
        add_script(scalar);
        continue;
      }
      if (add_assigned_variable(scalar)) continue;
      flags = flags || scalar.text.starts_with("--");
      add_words(words, scalar);
    }
    if (flags) word_lists_.push_back(std::move(words));
  }

  /// An item is one word; "--flag value" in one item is taken as two, as people write it.
  static void add_words(std::vector<LinedText>& words, const YamlNode& scalar) {
    LinedText word;
    for (const char byte : scalar.text) {
      if (byte == ' ' && scalar.text.starts_with("--")) {
        if (!word.bytes.empty()) words.push_back(std::move(word));
        word = {};
      } else {
        word.add(byte, scalar.line);
      }
    }
    if (!word.bytes.empty()) words.push_back(std::move(word));
  }

  void add_script(const YamlNode& scalar) {
    LinedText text;
    // The lines of a block begin behind the line of its key.
    std::int32_t line = scalar.line + (scalar.block ? 1 : 0);
    for (const char byte : scalar.text) {
      text.add(byte, line);
      if (byte == '\n') ++line;
    }
    scripts_.push_back(std::move(text));
  }

  /// "NAME=value", as compose files list an environment.
  bool add_assigned_variable(const YamlNode& scalar) {
    const std::size_t equals = scalar.text.find('=');
    if (equals == std::string::npos || !is_variable_name(std::string_view(scalar.text).substr(0, equals))) return false;
    YamlNode name = scalar;
    name.text.resize(equals);
    environment_.push_back(make_setting(name, name.text, {scalar.text.substr(equals + 1)}, 0));
    return true;
  }

  /// {name: X, value: Y}, as Kubernetes lists an environment.
  void add_named_variable(const YamlNode& node) {
    const YamlNode* name = nullptr;
    const YamlNode* value = nullptr;
    for (std::size_t idx = 0; idx + 1 < node.children.size(); idx += 2) {
      const YamlNode& key = tree_.at(node.children[idx]);
      if (key.text == "name") name = &tree_.at(node.children[idx + 1]);
      if (key.text == "value") value = &tree_.at(node.children[idx + 1]);
    }
    // Beside a value a name is one of a variable without an underscore in it, too.
    if (name == nullptr || value == nullptr || !is_variable_name(name->text + "_")) return;
    environment_.push_back(make_setting(*name, name->text, {value->text}, 0));
  }

  void read_size(std::string_view name, const YamlNode& value) {
    const auto number = parse_whole(value.text);
    if (!number) return;
    if (name == "num-nodes" || name == "nnodes" || name == "nodes") num_nodes_ = number;
    if (name == "gpus-per-node" || name == "nproc-per-node" || name == "num-gpus-per-node" || name == "ntasks-per-node")
      gpus_per_node_ = number;
    if (name == "world-size" || name == "num-gpus") num_ranks_ = number;
  }

  [[nodiscard]] bool is_scalar_list(const YamlNode& node) const {
    return !node.children.empty() && std::all_of(node.children.begin(), node.children.end(), [&](std::size_t item) {
      return tree_.at(item).kind == YamlKind::kScalar;
    });
  }
  [[nodiscard]] bool starts_with_option(const YamlNode& node) const {
    return tree_.at(node.children.front()).text.starts_with("--");
  }

  static Setting make_setting(const YamlNode& key, const std::string& name, std::vector<std::string> values,
                              std::int32_t scope) {
    Setting setting;
    setting.name = name;
    setting.flag = key.text;
    setting.values = std::move(values);
    setting.line = key.line;
    setting.scope = scope;
    setting.known_value = setting.values.empty() || setting.values.front().find("${") == std::string::npos;
    return setting;
  }

  ConfigFile& file_;
  const YamlTree& tree_;
  int visits_ = 0;
  std::int32_t scope_ = 0;
  std::vector<YamlScope> scopes_ = {{}};
  std::vector<std::size_t> merged_;
  std::vector<Setting> options_;
  std::vector<Setting> environment_;
  std::vector<LinedText> scripts_;
  std::vector<std::vector<LinedText>> word_lists_;
  std::optional<std::int64_t> num_nodes_;
  std::optional<std::int64_t> gpus_per_node_;
  std::optional<std::int64_t> num_ranks_;
};

}  // namespace

std::string plain_key(std::string_view key) {
  while (key.starts_with('-')) key.remove_prefix(1);
  std::string name(key);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

bool is_variable_name(std::string_view key) {
  return key.size() > 2 &&
         std::all_of(key.begin(), key.end(),
                     [](char byte) {
                       return std::isupper(static_cast<unsigned char>(byte)) != 0 || byte == '_' ||
                              std::isdigit(static_cast<unsigned char>(byte)) != 0;
                     }) &&
         key.find('_') != std::string_view::npos;
}

bool is_option_key(std::string_view name) {
  for (const Engine engine : {Engine::kMegatron, Engine::kVllm, Engine::kSglang}) {
    if (is_known_flag(engine, name) || canonical_name(engine, name) != name) return true;
  }
  return name == "mixed-precision" || name == "compute-dtype" || yaml_concerns_experts(name);
}

void read_yaml_runs(ConfigFile& file, const YamlTree& tree) {
  for (const std::size_t root : tree.documents) Document(file, tree).run(root);
}

}  // namespace epistle::check
