#include <algorithm>
#include <array>
#include <cstddef>

#include <nlohmann/json.hpp>

#include "epistle/models.hpp"

#include "core/ascii.hpp"
#include "select/check/check.hpp"
#include "select/engine_backends.hpp"

namespace epistle::check {
namespace {

/// Of SGLang's backends those that set the EP degree to the TP degree (0.5.23).
constexpr std::array<std::string_view, 10> kSpanningBackends = {
    "megamoe",       "deepep",     "deepep_v2",          "mooncake", "nixl",
    "ascend_fuseep", "flashinfer", "flashinfer_megamoe", "mori",     "pplx"};

std::optional<std::int64_t> facts_product(std::initializer_list<std::int64_t> factors) {
  std::int64_t value = 1;
  for (const std::int64_t factor : factors) {
    if (factor < 1 || __builtin_mul_overflow(value, factor, &value)) return std::nullopt;
  }
  return value;
}

/// The preset whose name is part of a path such as "deepseek-ai/DeepSeek-V3-0324", the longest if several are.
const ModelPreset* find_model_in(std::string_view path) {
  std::string name = to_lower(path);
  std::replace(name.begin(), name.end(), '_', '-');
  const ModelPreset* best = nullptr;
  std::size_t length = 0;
  for (const ModelPreset& preset : model_presets()) {
    std::string_view rest = preset.aliases;
    std::string_view candidate = preset.name;
    while (!candidate.empty()) {
      if (candidate.size() > length && name.find(candidate) != std::string::npos) {
        best = &preset;
        length = candidate.size();
      }
      const std::size_t comma = std::min(rest.find(','), rest.size());
      candidate = rest.substr(0, comma);
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
  }
  return best;
}

void take_model(RunFacts& facts, std::string_view path) {
  const ModelPreset* const preset = path.empty() ? nullptr : find_model_in(path);
  if (preset == nullptr) return;
  if (!facts.hidden) facts.hidden = preset->hidden;
  if (!facts.num_experts) facts.num_experts = preset->num_experts;
  if (!facts.top_k) facts.top_k = preset->top_k;
}

void take_ep(RunFacts& facts, std::optional<std::int64_t> ep) {
  facts.ep_known = ep.has_value();
  facts.ep = ep.value_or(1);
}

/// A degree that is not given is 1; one that is given and not known is not known.
std::optional<std::int64_t> facts_degree(const RunConfig& run, std::string_view name) {
  return run.find(name) == nullptr ? std::optional<std::int64_t>(1) : run.number(name);
}

/// "MODEL_ARGS: {--num-experts: 8}": all that the run is given.
bool is_argument_list(const RunConfig& run) {
  return std::any_of(run.options.begin(), run.options.end(),
                     [](const Setting& setting) { return setting.flag.starts_with("--"); });
}

void read_megatron(RunFacts& facts) {
  const RunConfig& run = facts.run;
  const Setting* const type = run.find("moe-token-dispatcher-type");
  const Setting* const backend = run.find("moe-flex-dispatcher-backend");
  const bool bridge = run.dialect == Dialect::kBridgeScript;
  const std::string chosen = backend == nullptr || is_false(backend->value()) ? "" : std::string(backend->value());
  if (bridge && type == nullptr) {
    facts.would_run = backend == nullptr ? "unknown" : chosen.empty() ? "alltoall" : chosen;
  } else if (type != nullptr && (!type->known_value || type->values.empty())) {
    facts.would_run = "unknown";
  } else if (type == nullptr) {
    // The default of Megatron core (0.20); what a recipe changes has one from elsewhere.
    const bool recipe = run.is_recipe() && !is_argument_list(run);
    facts.would_run = recipe || run.only_infers() ? "unknown" : "allgather";
  } else if (type->value() == "flex") {
    const bool unknown = backend != nullptr && !backend->known_value;
    facts.would_run = unknown ? "unknown" : chosen.empty() ? "deepep" : chosen;
    if (run.is_recipe() && backend != nullptr && chosen.empty()) facts.would_run = "alltoall";
  } else {
    facts.would_run = type->value();
  }
  take_ep(facts, facts_degree(run, "expert-model-parallel-size"));
  facts.num_experts = run.number("num-experts");
  facts.hidden = run.find("moe-latent-size") != nullptr ? run.number("moe-latent-size") : run.number("hidden-size");
  facts.top_k = run.number("moe-router-topk");
  const bool any_experts =
      facts.num_experts || run.find("num-experts") != nullptr || type != nullptr || facts.ep > 1 || backend != nullptr;
  if (run.complete && !any_experts) facts.would_run = "none";
  facts.fp8 = run.has("fp8-format") && run.find("fp8-format")->known_value;
  for (const std::string_view name : {"mixed-precision", "compute-dtype"}) {
    const std::string_view precision = run.text(name);
    for (const std::string_view narrow : {"fp8", "fp4"})
      facts.fp8 = facts.fp8 || precision.find(narrow) != std::string_view::npos;
  }
  take_model(facts, run.text("model-recipe-name", run.text("model-family-name", run.text("model-name"))));
}

void read_vllm(RunFacts& facts) {
  const RunConfig& run = facts.run;
  std::string_view backend = run.text("all2all-backend", "allgather_reducescatter");
  const Setting* const variable = run.find_environment("VLLM_ALL2ALL_BACKEND");
  if (run.find("all2all-backend") == nullptr && variable != nullptr && variable->known_value)
    backend = variable->value();
  if (run.find("all2all-backend") != nullptr && !run.find("all2all-backend")->known_value) backend = "unknown";
  const EngineBackend* const known = find_engine_backend(vllm_backends(), backend);
  if (known != nullptr && known->is_alias && known->is_gone(facts.options.vllm)) backend = known->now;
  const auto tp = facts_degree(run, "tensor-parallel-size");
  auto dp = facts_degree(run, "data-parallel-size");
  const Setting* const dp_variable = run.find_environment("VLLM_DP_SIZE");
  if (run.find("data-parallel-size") == nullptr && dp_variable != nullptr) dp = parse_whole(dp_variable->value());
  const auto pcp = facts_degree(run, "prefill-context-parallel-size");
  const bool parallel = run.has("enable-expert-parallel");
  take_ep(facts, !parallel         ? std::optional<std::int64_t>(1)
                 : tp && dp && pcp ? facts_product({*tp, *dp, *pcp})
                                   : std::nullopt);
  // Without data parallelism all ranks of a group have the same tokens: their sums are all that is exchanged.
  const bool external = run.find("data-parallel-rank") != nullptr || run.find("data-parallel-start-rank") != nullptr;
  const bool exchanges = parallel && (dp.value_or(2) > 1 || pcp.value_or(2) > 1 || external);
  facts.would_run = exchanges ? std::string(backend) : "none";
  take_model(facts, run.text("model"));
}

void read_sglang(RunFacts& facts) {
  const RunConfig& run = facts.run;
  const Setting* const given = run.find("moe-a2a-backend");
  std::string_view backend =
      given != nullptr && !given->known_value ? std::string_view("unknown") : run.text("moe-a2a-backend", "none");
  if (run.find("moe-a2a-backend") == nullptr && run.has("enable-deepep-moe")) backend = "deepep";
  if (run.has("enable-waterfill") && backend != "megamoe") backend = "deepep";
  const bool spans = std::find(kSpanningBackends.begin(), kSpanningBackends.end(), backend) != kSpanningBackends.end();
  take_ep(facts, facts_degree(run, spans ? "tp-size" : "ep-size"));
  facts.would_run = backend;
  take_model(facts, run.text("model-path"));
}

}  // namespace

nlohmann::json json_of(const Setting& setting) {
  std::string text;
  for (const std::string& value : setting.values) text += (text.empty() ? "" : " ") + value;
  return nlohmann::json::parse(text, nullptr, false);
}

RedundantExperts redundant_experts(const RunConfig& run) {
  RedundantExperts found;
  const auto take = [&](const Setting& setting, std::optional<std::int64_t> number) {
    constexpr std::int64_t kMost = 1 << 20;
    found.setting = &setting;
    found.known = number.has_value();
    found.count = std::clamp<std::int64_t>(number.value_or(0), 0, kMost);
  };
  for (const std::string_view name :
       {"ep-num-redundant-experts", "num-redundant-experts", "eplb-config.num-redundant-experts"}) {
    if (const Setting* const setting = run.find(name); setting != nullptr) take(*setting, run.number(name));
  }
  const Setting* const whole = run.find("eplb-config");
  if (whole == nullptr || found.setting != nullptr) return found;
  if (!whole->known_value) {
    take(*whole, std::nullopt);
    return found;
  }
  const nlohmann::json config = json_of(*whole);
  if (!config.is_object()) return found;
  const auto field = config.find("num_redundant_experts");
  if (field == config.end()) return found;
  take(*whole, field->is_number_integer() ? std::optional(field->get<std::int64_t>()) : std::nullopt);
  return found;
}

RunFacts make_run_facts(const RunConfig& run, const CheckOptions& options) {
  RunFacts facts{.run = run, .options = options};
  if (run.engine == Engine::kMegatron) read_megatron(facts);
  if (run.engine == Engine::kVllm) read_vllm(facts);
  if (run.engine == Engine::kSglang) read_sglang(facts);
  const Setting* const mnnvl = run.find_environment("USE_MNNVL");
  const bool over_nodes = mnnvl != nullptr && mnnvl->value() == "1";
  if (options.cluster) {
    facts.domain_ranks = options.cluster->gpus_per_domain();
    facts.gpu = classify_gpu(*options.cluster);
  } else if (run.gpus_per_node && !over_nodes) {
    facts.domain_ranks = run.gpus_per_node;
  }
  return facts;
}

}  // namespace epistle::check
