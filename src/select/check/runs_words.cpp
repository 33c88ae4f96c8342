#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>

#include "core/ascii.hpp"
#include "select/check/flag_names.hpp"
#include "select/check/runs.hpp"

namespace epistle::check {
namespace {

struct Alias {
  Engine engine;
  std::string_view alias;
  std::string_view name;
};

// Sources: as in flag_names.hpp. Short options stand here without their dash.
constexpr std::array kAliases = {
    Alias{Engine::kSglang, "tp", "tp-size"},
    Alias{Engine::kSglang, "tensor-parallel-size", "tp-size"},
    Alias{Engine::kSglang, "dp", "dp-size"},
    Alias{Engine::kSglang, "data-parallel-size", "dp-size"},
    Alias{Engine::kSglang, "pp", "pp-size"},
    Alias{Engine::kSglang, "pipeline-parallel-size", "pp-size"},
    Alias{Engine::kSglang, "ep", "ep-size"},
    Alias{Engine::kSglang, "expert-parallel-size", "ep-size"},
    Alias{Engine::kSglang, "model", "model-path"},
    Alias{Engine::kSglang, "cuda-graph-max-bs-decode", "cuda-graph-max-bs"},
    Alias{Engine::kVllm, "tp", "tensor-parallel-size"},
    Alias{Engine::kVllm, "pp", "pipeline-parallel-size"},
    Alias{Engine::kVllm, "dp", "data-parallel-size"},
    Alias{Engine::kVllm, "dpl", "data-parallel-size-local"},
    Alias{Engine::kVllm, "dpn", "data-parallel-rank"},
    Alias{Engine::kVllm, "dpa", "data-parallel-address"},
    Alias{Engine::kVllm, "dpp", "data-parallel-rpc-port"},
    Alias{Engine::kVllm, "dpr", "data-parallel-start-rank"},
    Alias{Engine::kVllm, "dpb", "data-parallel-backend"},
    Alias{Engine::kVllm, "dph", "data-parallel-hybrid-lb"},
    Alias{Engine::kVllm, "dpe", "data-parallel-external-lb"},
    Alias{Engine::kVllm, "pcp", "prefill-context-parallel-size"},
    Alias{Engine::kVllm, "dcp", "decode-context-parallel-size"},
    Alias{Engine::kVllm, "ep", "enable-expert-parallel"},
    Alias{Engine::kVllm, "q", "quantization"},
    Alias{Engine::kVllm, "n", "nnodes"},
    Alias{Engine::kVllm, "r", "node-rank"},
    Alias{Engine::kMegatron, "num-moe-experts", "num-experts"},
    Alias{Engine::kMegatron, "fp8", "fp8-format"},
    Alias{Engine::kMegatron, "ep", "expert-model-parallel-size"},
    Alias{Engine::kMegatron, "expert-model-parallel-size", "expert-model-parallel-size"},
    Alias{Engine::kMegatron, "etp", "expert-tensor-parallel-size"},
    Alias{Engine::kMegatron, "tp", "tensor-model-parallel-size"},
    Alias{Engine::kMegatron, "pp", "pipeline-model-parallel-size"},
    Alias{Engine::kMegatron, "cp", "context-parallel-size"},
    Alias{Engine::kMegatron, "vp", "num-virtual-stages-per-pipeline-rank"},
    Alias{Engine::kMegatron, "expert-parallel-size", "expert-model-parallel-size"},
};

// Short options of Megatron-Bridge's scripts (scripts/performance/argument_parser.py, 2026-08-22).
constexpr std::array kBridgeAliases = {
    Alias{Engine::kMegatron, "m", "model-family-name"},
    Alias{Engine::kMegatron, "mr", "model-recipe-name"},
    Alias{Engine::kMegatron, "ng", "num-gpus"},
    Alias{Engine::kMegatron, "gn", "gpus-per-node"},
    Alias{Engine::kMegatron, "g", "gpu"},
    Alias{Engine::kMegatron, "c", "compute-dtype"},
    Alias{Engine::kMegatron, "et", "expert-tensor-parallel-size"},
    Alias{Engine::kMegatron, "mb", "micro-batch-size"},
    Alias{Engine::kMegatron, "gb", "global-batch-size"},
    Alias{Engine::kMegatron, "nh", "nemo-home"},
};

struct Marker {
  Engine engine;
  std::string_view part;  ///< of a name
  int weight;
};

constexpr std::array kMarkers = {
    Marker{Engine::kMegatron, "moe-token-dispatch", 3},
    Marker{Engine::kMegatron, "moe-flex-", 3},
    Marker{Engine::kMegatron, "-model-parallel-size", 3},
    Marker{Engine::kMegatron, "moe-router", 3},
    Marker{Engine::kMegatron, "hybridep", 2},
    Marker{Engine::kMegatron, "moe-deepep", 3},
    Marker{Engine::kMegatron, "moe-enable-deepep", 3},
    Marker{Engine::kMegatron, "num-experts", 2},
    Marker{Engine::kMegatron, "num-moe-experts", 2},
    Marker{Engine::kMegatron, "moe-grouped-gemm", 2},
    Marker{Engine::kMegatron, "micro-batch-size", 2},
    Marker{Engine::kMegatron, "overlap-moe-expert", 3},
    Marker{Engine::kMegatron, "cuda-graph-impl", 2},
    Marker{Engine::kMegatron, "sequence-parallel", 1},
    Marker{Engine::kVllm, "all2all-backend", 3},
    Marker{Engine::kVllm, "enable-expert-parallel", 3},
    Marker{Engine::kVllm, "tensor-parallel-size", 1},
    Marker{Engine::kVllm, "data-parallel-size-local", 3},
    Marker{Engine::kVllm, "eplb-config", 3},
    Marker{Engine::kVllm, "max-model-len", 2},
    Marker{Engine::kVllm, "gpu-memory-utilization", 2},
    Marker{Engine::kVllm, "enable-dbo", 3},
    Marker{Engine::kSglang, "moe-a2a-backend", 3},
    Marker{Engine::kSglang, "deepep-mode", 3},
    Marker{Engine::kSglang, "deepep-config", 3},
    Marker{Engine::kSglang, "enable-dp-attention", 3},
    Marker{Engine::kSglang, "mem-fraction-static", 3},
    Marker{Engine::kSglang, "model-path", 2},
    Marker{Engine::kSglang, "tp-size", 2},
    Marker{Engine::kSglang, "ep-size", 2},
    Marker{Engine::kSglang, "enable-deepep-moe", 3},
    Marker{Engine::kSglang, "chunked-prefill-size", 3},
    Marker{Engine::kSglang, "deepep-v2-mode", 3},
    Marker{Engine::kSglang, "ep-num-redundant", 3},
};

std::string_view base_name(std::string_view path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

bool is_number(std::string_view word) {
  if (word.starts_with('-')) word.remove_prefix(1);
  return !word.empty() && std::all_of(word.begin(), word.end(), [](char byte) {
    return std::isdigit(static_cast<unsigned char>(byte)) != 0 || byte == '.' || byte == 'e' || byte == '-';
  }) && std::isdigit(static_cast<unsigned char>(word.front())) != 0;
}

/// An editor's dash where two of the keyboard's were: no option to any program, but meant as one.
bool has_other_dash(std::string_view word) {
  constexpr std::size_t kDashBytes = 3;
  const bool dash = word.starts_with("\xe2\x80\x93") || word.starts_with("\xe2\x80\x94");
  return dash && word.size() > kDashBytes &&
         (word[kDashBytes] == '-' || std::isalpha(static_cast<unsigned char>(word[kDashBytes])) != 0);
}

/// "--flag", or "-tp": letters behind one dash.
bool is_option(std::string_view word) {
  if (has_other_dash(word)) return true;
  if (word.size() < 2 || word.front() != '-' || is_number(word)) return false;
  return word[1] == '-' ? word.size() > 2 : std::isalpha(static_cast<unsigned char>(word[1])) != 0;
}

std::string plain_name(std::string_view flag) {
  if (has_other_dash(flag)) return std::string(flag);
  while (flag.starts_with('-') || flag.starts_with('+') || flag.starts_with('~')) flag.remove_prefix(1);
  std::string name(flag);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

/// "model.moe_token_dispatcher_type=flex", as recipes are overridden.
bool is_override(std::string_view word) {
  const std::size_t equals = word.find('=');
  if (equals == std::string_view::npos || equals == 0) return false;
  const std::string_view name = word.substr(0, equals);
  return name.find('.') != std::string_view::npos && name.find_first_of("/$ \"'{:") == std::string_view::npos &&
         std::isalpha(
             static_cast<unsigned char>(name.front() == '+' || name.front() == '~' ? name[1] : name.front())) != 0;
}

struct Program {
  std::size_t end = 0;  ///< first word behind it
  Engine engine = Engine::kUnknown;
  std::string name;
  bool bridge = false;
  bool fields = false;  ///< options are fields of a configuration, with underscores
};

/// "megatron sft ..." of ms-swift.
bool is_swift_command(std::string_view name, std::string_view next) {
  constexpr std::array<std::string_view, 4> kTasks = {"sft", "pt", "rlhf", "export"};
  return name == "megatron" && std::find(kTasks.begin(), kTasks.end(), next) != kTasks.end();
}

/// An image whose entry point is vllm serve, as docker runs it: options stand behind its name.
bool is_vllm_image(std::string_view word) {
  return word.find("vllm-openai") != std::string_view::npos && !word.starts_with('-');
}

bool is_bridge_script(std::string_view name) {
  return name.find("setup_experiment") != std::string_view::npos || name.find("run_script") != std::string_view::npos ||
         name.find("run_recipe") != std::string_view::npos || name.find("run_performance") != std::string_view::npos;
}

Program find_program(const std::vector<LinedText>& words) {
  Program image;
  Program module;
  for (std::size_t idx = 0; idx < words.size(); ++idx) {
    const std::string_view word = words[idx].bytes;
    const std::string_view name = base_name(word);
    const std::string_view next = idx + 1 < words.size() ? std::string_view(words[idx + 1].bytes) : "";
    if (name == "vllm" && (next == "serve" || next == "bench" || next == "chat" || next == "complete")) {
      return {.end = idx + 2, .engine = Engine::kVllm, .name = "vllm " + std::string(next)};
    }
    if (name == "sglang" && next == "serve") return {idx + 2, Engine::kSglang, "sglang serve", false};
    if (is_swift_command(name, next))
      return {.end = idx + 2, .engine = Engine::kMegatron, .name = "megatron", .fields = true};
    if (name == "nemo" && next == "llm") return {.end = idx + 2, .engine = Engine::kMegatron, .name = "nemo llm"};
    if (word == "-m" && next.starts_with("vllm.")) return {idx + 2, Engine::kVllm, std::string(next), false};
    if (word == "-m" && next.starts_with("sglang")) return {idx + 2, Engine::kSglang, std::string(next), false};
    if (word == "-m" && next.starts_with("megatron")) return {idx + 2, Engine::kMegatron, std::string(next), false};
    if (is_vllm_image(word)) image = {idx + 1, Engine::kVllm, std::string(word), false};
    // Somebody's trainer: its options tell which engine it is.
    const bool launcher = next.starts_with("torch") || next.starts_with("accelerate") || next.starts_with("deepspeed");
    if (word == "-m" && idx > 0 && base_name(words[idx - 1].bytes).starts_with("python") && !launcher)
      module = {idx + 2, Engine::kUnknown, std::string(next), false};
    if (!name.ends_with(".py") || word.starts_with('-')) continue;
    Program program{idx + 1, Engine::kUnknown, std::string(word), is_bridge_script(name)};
    if (word.find("sglang") != std::string_view::npos) program.engine = Engine::kSglang;
    if (word.find("vllm") != std::string_view::npos) program.engine = Engine::kVllm;
    const bool megatron =
        word.find("pretrain") != std::string_view::npos || word.find("egatron") != std::string_view::npos;
    if (megatron || program.bridge) program.engine = Engine::kMegatron;
    return program;
  }
  return image.name.empty() ? module : image;
}

/// "a.b.c=1" belongs to the map "a.b": the same field of another map is another field.
std::int32_t scope_of_override(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return static_cast<std::int32_t>(std::hash<std::string_view>{}(path.substr(0, dot)) & 0x7fff'ffffU);
}

Setting words_make_setting(const LinedText& word, std::string_view flag) {
  Setting setting;
  setting.flag = flag;
  setting.name = plain_name(flag);
  setting.line = word.line();
  return setting;
}

/// Options of several values, each a word, of which rules read more than the first.
bool takes_list(std::string_view name) {
  constexpr std::array<std::string_view, 5> kLists = {"cuda-graph-scope", "cuda-graph-modules", "recompute-modules",
                                                      "cuda-graph-bs", "moe-router-load-balancing-type"};
  return std::find(kLists.begin(), kLists.end(), name) != kLists.end();
}

std::vector<Setting> read_options(const std::vector<LinedText>& words, std::size_t begin) {
  std::vector<Setting> options;
  for (std::size_t idx = begin; idx < words.size(); ++idx) {
    const LinedText& word = words[idx];
    const bool override_word = is_override(word.bytes) && !word.bytes.starts_with("--");
    if (!is_option(word.bytes) && !override_word) {
      // What stands behind a whole option and is not known may be other options, and no second value.
      const bool others =
          !word.known && !options.empty() && !options.back().values.empty() && !takes_list(options.back().name);
      if (!others && !options.empty() && options.back().name.find('=') == std::string::npos) {
        options.back().values.push_back(word.bytes);
        options.back().known_value = options.back().known_value && word.known;
        options.back().assumed_value = options.back().assumed_value || word.assumed;
      }
      continue;
    }
    const std::size_t equals = word.bytes.find('=');
    std::string_view flag = std::string_view(word.bytes).substr(0, equals);
    Setting setting = words_make_setting(word, flag);
    if (override_word) {
      // What a trainer hands on to its engine for rollouts is not its own.
      if (setting.name.find(".rollout.") != std::string::npos) continue;
      setting.scope = scope_of_override(setting.name);
      const std::size_t dot = setting.name.rfind('.');
      setting.name = setting.name.substr(dot + 1);
    }
    if (equals != std::string::npos) {
      setting.values.push_back(word.bytes.substr(equals + 1));
      setting.known_value = word.known;
      setting.assumed_value = word.assumed;
    }
    options.push_back(std::move(setting));
  }
  return options;
}

std::optional<std::int64_t> number_of(const std::vector<Setting>& options,
                                      std::initializer_list<std::string_view> names) {
  for (const Setting& setting : options) {
    if (std::find(names.begin(), names.end(), setting.name) == names.end()) continue;
    if (setting.known_value) return parse_whole(setting.value());
  }
  return std::nullopt;
}

bool is_upper_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char byte) {
    return std::isupper(static_cast<unsigned char>(byte)) != 0 || byte == '_' ||
           std::isdigit(static_cast<unsigned char>(byte)) != 0;
  });
}

/// "A=1,B=2" of a word from `begin` on: a comma ends a value only where another name follows.
void add_variables(RunConfig& run, const LinedText& word, std::size_t begin) {
  std::string_view rest = std::string_view(word.bytes).substr(begin);
  Setting* last = nullptr;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view item = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    const std::size_t equals = item.find('=');
    if (equals != std::string_view::npos && is_upper_name(item.substr(0, equals))) {
      Setting setting = words_make_setting(word, item.substr(0, equals));
      setting.name = item.substr(0, equals);
      setting.values.emplace_back(item.substr(equals + 1));
      setting.known_value = word.known;
      run.environment.push_back(std::move(setting));
      last = &run.environment.back();
    } else if (last != nullptr && !is_upper_name(item)) {
      last->values.front().append(",").append(item);
    }
  }
}

/// What stands in front of the program says how many ranks there are.
void read_launcher(RunConfig& run, const std::vector<LinedText>& words, std::size_t end) {
  const std::vector<LinedText> launcher(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(end));
  const std::vector<Setting> options = read_options(launcher, 0);
  const auto starts = [&](std::string_view name) {
    return std::any_of(launcher.begin(), launcher.end(),
                       [&](const LinedText& word) { return base_name(word.bytes) == name; });
  };
  const bool torchrun = starts("torchrun") || number_of(options, {"nproc-per-node"}).has_value();
  if (torchrun) {
    run.gpus_per_node = number_of(options, {"nproc-per-node"});
    const bool says_nodes =
        std::any_of(options.begin(), options.end(), [](const Setting& o) { return o.name == "nnodes"; });
    run.num_nodes = says_nodes ? number_of(options, {"nnodes"}) : std::optional<std::int64_t>(1);
  } else if (starts("mpirun") || starts("mpiexec")) {
    run.num_ranks = number_of(options, {"np", "n"});
  } else if (starts("srun")) {
    run.num_ranks = number_of(options, {"ntasks", "n"});
    run.num_nodes = number_of(options, {"nodes", "N"});
    run.gpus_per_node = number_of(options, {"ntasks-per-node"});
  }
  run.assumed_size = std::any_of(options.begin(), options.end(), [](const Setting& setting) {
    const bool size = setting.name == "nnodes" || setting.name == "nproc-per-node" || setting.name == "ntasks" ||
                      setting.name == "nodes";
    return size && setting.assumed_value;
  });
  for (const auto& argument : launcher) {
    const std::string& word = argument.bytes;
    if (!word.starts_with('-')) {
      add_variables(run, argument, 0);
      continue;
    }
    // srun --export=ALL,A=1; docker --env=A=1; singularity --env A=1,B=2 (the list is a word of its own)
    for (const std::string_view option : {"--export=", "--env="}) {
      if (word.starts_with(option)) add_variables(run, argument, option.size());
    }
  }
}

}  // namespace

std::string canonical_name(Engine engine, std::string_view name) {
  for (const Alias& alias : kAliases) {
    if (alias.engine == engine && alias.alias == name) return std::string(alias.name);
  }
  return std::string(name);
}

Engine guess_engine(const std::vector<Setting>& options) {
  std::array<int, 4> weights = {};
  std::array<int, 4> marks = {};
  for (const Setting& setting : options) {
    for (const Marker& marker : kMarkers) {
      if (setting.name.find(marker.part) == std::string::npos) continue;
      // "--megatron-model-path" of a conversion is none of SGLang.
      if (marker.part == "model-path" && setting.name != marker.part) continue;
      weights[static_cast<std::size_t>(marker.engine)] += marker.weight;
      marks[static_cast<std::size_t>(marker.engine)] += marker.weight;
    }
    for (const Engine engine : {Engine::kMegatron, Engine::kVllm, Engine::kSglang}) {
      if (is_known_flag(engine, setting.name)) ++weights[static_cast<std::size_t>(engine)];
    }
  }
  const auto* const best = std::max_element(weights.begin(), weights.end());
  constexpr int kEnough = 3;
  // Names that everybody has (tp, model, port) tell nothing by themselves.
  constexpr int kEnoughMarks = 2;
  const auto engine = static_cast<std::size_t>(best - weights.begin());
  return *best < kEnough || marks[engine] < kEnoughMarks ? Engine::kUnknown : static_cast<Engine>(engine);
}

std::string find_hardware_name(std::string_view text) {
  struct Name {
    std::string_view part;
    std::string_view preset;
  };
  // Longer names first: "gb200" holds "b200".
  constexpr std::array kNames = {Name{"gb300", "gb300-nvl72"}, Name{"gb200", "gb200-nvl72"}, Name{"h200", "h200-hgx"},
                                 Name{"h100", "h100-hgx"},     Name{"b300", "b300"},         Name{"b200", "b200"},
                                 Name{"a100", "a100"},         Name{"mi300", "mi300x"},      Name{"h20", "h20"},
                                 Name{"rtx", "rtx-pro-6000"}};
  const std::string lower = to_lower(text);
  for (const Name& name : kNames) {
    if (lower.find(name.part) != std::string::npos) return std::string(name.preset);
  }
  return {};
}

namespace {

/// The names that rules know: aliases, and what argparse takes for the one name that begins so.
void name_options(RunConfig& run, bool bridge, bool fields) {
  if (bridge) run.dialect = Dialect::kBridgeScript;
  if (fields) run.dialect = Dialect::kYaml;
  for (Setting& setting : run.options) {
    // "model.x=y" belongs to recipes, whose options are fields.
    const bool field = setting.flag.find('.') != std::string::npos && !setting.flag.starts_with('-');
    if (run.engine == Engine::kMegatron && field && !bridge) run.dialect = Dialect::kYaml;
    setting.name = canonical_name(run.engine, setting.name);
    if (bridge) {
      for (const Alias& alias : kBridgeAliases) {
        if (alias.alias == setting.name) setting.name = alias.name;
      }
    }
    if (field || !setting.flag.starts_with("--") || is_known_flag(run.engine, setting.name)) continue;
    const auto longer = flags_that_begin_with(run.engine, setting.name);
    if (longer.size() == 1) setting.name = canonical_name(run.engine, longer.front());
  }
  if (run.dialect != Dialect::kCommandLine) run.complete = false;
}

/// Machine and size of a run, which Megatron-Bridge's scripts are told by options of their own.
void read_bridge(RunConfig& run) {
  if (const Setting* const gpu = run.find("gpu")) run.hardware = find_hardware_name(gpu->value());
  if (const auto gpus = run.number("num-gpus")) run.num_ranks = gpus;
  if (const auto gpus = run.number("gpus-per-node")) run.gpus_per_node = gpus;
}

}  // namespace

RunConfig read_words(const std::vector<LinedText>& words) {
  RunConfig run;
  if (words.empty()) return run;
  const Program program = find_program(words);
  const bool flags_only = program.name.empty() && is_option(words.front().bytes);
  if (program.name.empty() && !flags_only) return run;
  run.program = program.name;
  run.line = words.front().line();
  run.options = read_options(words, program.end);
  run.engine = program.engine == Engine::kUnknown ? guess_engine(run.options) : program.engine;
  const bool positional =
      run.engine == Engine::kVllm && program.end < words.size() && !is_option(words[program.end].bytes);
  if (positional && words[program.end].known) {
    Setting model = words_make_setting(words[program.end], "model");
    model.values = {words[program.end].bytes};
    run.options.insert(run.options.begin(), std::move(model));
  }
  if (run.engine == Engine::kUnknown) return run;
  read_launcher(run, words, program.end);
  name_options(run, program.bridge, program.fields);
  if (program.bridge) read_bridge(run);
  return run;
}

}  // namespace epistle::check
