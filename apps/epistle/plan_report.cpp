#include "plan_report.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include <fmt/format.h>

#include "cost/switch_reduction.hpp"
#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "; ") + part;
  return text;
}

std::string format_gb(double bytes) { return fmt::format("{:.1f} GB", bytes / 1e9); }

std::string format_interval(double low_us, double high_us) {
  return fmt::format("{} - {}", format_us(low_us), format_us(high_us));
}

Binding binding_of(const PlanTerm& term) {
  return static_cast<Binding>(std::max_element(term.parts_us.begin(), term.parts_us.end()) - term.parts_us.begin());
}

bool is_feasible(const Plan& plan) { return plan.refusals.empty(); }

std::string render_plans(const std::vector<Plan>& plans, int num_shown) {
  Table table({{"#", Align::kRight},
               {"plan", Align::kLeft},
               {"EP", Align::kRight},
               {"TP", Align::kRight},
               {"DP", Align::kRight},
               {"step", Align::kRight},
               {"90% interval", Align::kLeft},
               {"tokens/s/GPU", Align::kRight},
               {"memory", Align::kRight},
               {"bound by", Align::kLeft}});
  int place = 0;
  for (const Plan& plan : plans) {
    if (!is_feasible(plan) || place == num_shown) break;
    const PlanChoice& choice = plan.choice;
    table.add_row({std::to_string(++place), choice.name(), std::to_string(choice.num_ranks),
                   std::to_string(choice.tensor_ranks), std::to_string(choice.num_replicas), format_us(plan.step_us),
                   format_interval(plan.step_low_us, plan.step_high_us),
                   format_count(std::llround(plan.tokens_per_s_per_gpu)), format_gb(plan.memory.total()),
                   std::string(to_string(plan.binding))});
  }
  return place == 0 ? "No plan is feasible.\n" : table.render();
}

/// The refused plan nearest to feasible of every EP that has no feasible one.
std::string render_refusals(const std::vector<Plan>& plans) {
  std::map<std::int32_t, const Plan*> refused;
  for (const Plan& plan : plans) {
    if (is_feasible(plan)) refused[plan.choice.num_ranks] = nullptr;
  }
  for (const Plan& plan : plans) refused.emplace(plan.choice.num_ranks, &plan);
  std::string text;
  for (const auto& [ranks, plan] : refused) {
    if (plan != nullptr) text += fmt::format("  EP {}: {} ({})\n", ranks, join(plan->refusals), plan->choice.name());
  }
  return text.empty() ? text : "\nNot feasible at any TP or dispatcher:\n" + text;
}

std::string render_terms(const Plan& plan) {
  Table table({{"term of a layer", Align::kLeft},
               {"time", Align::kRight},
               {"90% interval", Align::kLeft},
               {"bound by", Align::kLeft},
               {"from", Align::kLeft},
               {"curve", Align::kLeft}});
  for (const PlanTerm& term : plan.terms) {
    table.add_row({std::string(term.name), format_us(term.us), format_interval(term.low_us, term.high_us),
                   std::string(to_string(binding_of(term))), std::string(term.provenance),
                   term.curve.empty() ? "closed form" : term.curve});
  }
  if (plan.hidden_us > 0) table.add_row({"overlap", "-" + format_us(plan.hidden_us), "-", "-", "-", "-"});
  table.add_row({"layer", format_us(plan.layer_us),
                 format_interval(plan.layer_us * plan.step_low_us / plan.step_us,
                                 plan.layer_us * plan.step_high_us / plan.step_us),
                 std::string(to_string(plan.binding)), "-", "-"});
  return table.render();
}

std::string render_memory(const MemoryLedger& memory) {
  Table table({{"memory of a GPU", Align::kLeft}, {"bytes", Align::kRight}, {"from", Align::kLeft}});
  table.add_row({"expert weights", format_gb(memory.expert_weights), "model"});
  table.add_row({"other weights", format_gb(memory.other_weights), "model"});
  table.add_row({"KV cache or activations", format_gb(memory.kv_cache), "workload"});
  table.add_row({"exchange buffers", format_gb(memory.exchange_buffers), std::string(memory.buffers_source)});
  table.add_row({"workspace", format_gb(memory.workspace), "rows of the busiest rank"});
  table.add_row({"reserve", format_gb(memory.reserve), "assumed: CUDA, graphs, libraries"});
  table.add_row({"total", format_gb(memory.total()), fmt::format("of {} that may be used", format_gb(memory.limit))});
  return table.render();
}

bool switches_add(const PlanRequest& request) { return request.cluster.value(ClusterField::kInNetworkReduction) > 0; }

/// What leaves a GPU in combine, with switches that add and without.
SwitchReduction reduction_of(const PlanRequest& request, const Plan& plan) {
  constexpr double kBf16Bytes = 2;
  return switch_reduction(plan.choice.num_ranks, plan.counts.distinct_ranks, tokens_per_call(request, plan.choice),
                          kBf16Bytes * request.model.routed_hidden);
}

std::string render_reduction(const PlanRequest& request, const Plan& plan) {
  const std::int32_t ranks = plan.choice.num_ranks;
  if (ranks == 1 || ranks > request.cluster.gpus_per_domain()) return {};
  if (!switches_add(request)) return "\nIn-network reduction: the links of this cluster do not add.\n";
  const SwitchReduction reduction = reduction_of(request, plan);
  return fmt::format(
      "\nIn-network reduction of combine {} at EP {}: switches would read {:.2f} MB of every GPU (each row of the "
      "other "
      "{} ranks), plain writes send {:.2f} MB (a token's {:.2f} ranks): {:.2f} times as much.\n",
      reduction.pays() ? "pays" : "does not pay", ranks, reduction.served_bytes / 1e6, ranks - 1,
      reduction.written_bytes / 1e6, plan.counts.distinct_ranks, reduction.factor());
}

Json reduction_json(const PlanRequest& request, const Plan& plan) {
  const SwitchReduction reduction = reduction_of(request, plan);
  return {{"available", switches_add(request)},
          {"ep", plan.choice.num_ranks},
          {"distinct_ranks", plan.counts.distinct_ranks},
          {"written_bytes", reduction.written_bytes},
          {"served_bytes", reduction.served_bytes},
          {"pays", switches_add(request) && plan.choice.num_ranks > 1 && reduction.pays()}};
}

/// What of a row's copies leaves a token's domain, and over how many rails; nothing within one domain.
Json crossing_json(const PlanRequest& request, const Plan& plan) {
  const PlanChoice& choice = plan.choice;
  const double domains = std::ceil(static_cast<double>(choice.num_ranks) / request.cluster.gpus_per_domain());
  if (choice.mode == nullptr || domains <= 1) return nullptr;
  const bool gathers = choice.mode->kind == ExchangeKind::kGather;
  double copies = plan.counts.distinct_ranks;
  const char* per = "rank";
  if (choice.mode->kind == ExchangeKind::kThroughput) {
    copies = plan.counts.distinct_domains;
    per = "domain";
  } else if (choice.mode->kind == ExchangeKind::kLowLatency || choice.mode->kind == ExchangeKind::kAllToAll) {
    copies = request.model.top_k;
    per = "expert";
  }
  if (gathers) copies = choice.num_ranks;
  const double elsewhere = copies * (domains - 1) / domains;
  return {{"domains", domains},
          {"a_row_per", per},
          {"rows_per_token", elsewhere},
          {"nics_per_domain", request.cluster.nics_per_domain()},
          {"rails", request.cluster.num_rails()}};
}

std::string render_network(const PlanRequest& request, const Plan& plan) {
  const Json network = crossing_json(request, plan);
  if (network.is_null()) return {};
  return fmt::format(
      "\nBetween {:.0f} domains a token puts {:.2f} rows on the network, one per {} elsewhere; a domain has {} "
      "network cards on {} rails.\n",
      network.at("domains").get<double>(), network.at("rows_per_token").get<double>(),
      network.at("a_row_per").get<std::string>(), request.cluster.nics_per_domain(), request.cluster.num_rails());
}

std::string render_rest(const PlanReport& report) {
  std::string text = render_network(*report.request, report.plans.front());
  text += render_reduction(*report.request, report.plans.front());
  if (!report.crossovers.empty()) {
    text += "\nFastest exchange by tokens per rank:\n";
    for (const CrossoverPoint& point : report.crossovers) {
      text += fmt::format("  from {}: {} ({} both ways)\n", point.tokens, point.mode, format_us(point.exchange_us));
    }
  }
  if (!report.sm_points.empty()) {
    Table table({{"SMs", Align::kRight}, {"exchange", Align::kRight}, {"us per SM more", Align::kRight}});
    for (const SmPoint& point : report.sm_points) {
      table.add_row(
          {std::to_string(point.num_sms), format_us(point.exchange_us), fmt::format("{:.2f}", point.us_per_sm)});
    }
    text += "\n" + table.render();
  }
  text += "\nIf things were otherwise:\n";
  for (const PlanFlip& flip : report.flips) {
    text += fmt::format("  {}: {}{}\n", flip.assumption, flip.best, flip.flips ? "  <- flips" : "");
  }
  text += "\nMeasure next, the most telling first:\n";
  std::string files;
  for (const NextMeasurement& next : report.measurements) {
    text += fmt::format("  {} (a step is unsure by {} for it)\n    {}\n", next.what, format_us(next.spread_us),
                        next.command);
    files += " " + next.file;
  }
  if (!files.empty()) text += fmt::format("Then the same plan with --measurements{}\n", files);
  for (const UnmeasuredTerm& term : report.unmeasured) {
    text += fmt::format("No command here measures {} ({} of a step): {}\n", term.name, format_us(term.spread_us),
                        term.remedy);
  }
  return text;
}

Json term_json(const PlanTerm& term) {
  Json parts = Json::object();
  for (std::size_t idx = 0; idx < kNumBindings; ++idx) {
    if (term.parts_us[idx] > 0) parts[std::string(to_string(static_cast<Binding>(idx)))] = term.parts_us[idx];
  }
  return {{"name", term.name},
          {"us", term.us},
          {"low_us", term.low_us},
          {"high_us", term.high_us},
          {"binding", to_string(binding_of(term))},
          {"parts_us", parts},
          {"provenance", term.provenance},
          {"curve", term.curve}};
}

Json memory_json(const MemoryLedger& memory) {
  return {{"expert_weights_bytes", memory.expert_weights},
          {"other_weights_bytes", memory.other_weights},
          {"kv_cache_bytes", memory.kv_cache},
          {"exchange_buffers_bytes", memory.exchange_buffers},
          {"exchange_buffers_source", memory.buffers_source},
          {"workspace_bytes", memory.workspace},
          {"reserve_bytes", memory.reserve},
          {"total_bytes", memory.total()},
          {"limit_bytes", memory.limit}};
}

/// How a config was read: who knows the model sees by its parameters whether that was right.
std::string render_model(const PlanModel& model) {
  constexpr double kBillion = 1e9;
  std::string text = fmt::format("{:.1f} billion parameters, {:.1f} of them for a token; {} layers, {} with experts;",
                                 model.parameters() / kBillion, model.active_parameters() / kBillion, model.num_layers,
                                 model.num_moe_layers);
  for (const AttentionLayers& layers : model.attention) {
    std::string kind = "attention to all tokens";
    if (layers.window_tokens > 0) kind = fmt::format("a window of {}", layers.window_tokens);
    if (layers.tokens_per_summary > 0) kind += fmt::format(" and a summary of every {}", layers.tokens_per_summary);
    if (layers.chosen_tokens > 0) kind += fmt::format(", reading {}", layers.chosen_tokens);
    if (layers.state_elements > 0) kind = "a state in place of a cache";
    text += fmt::format("{} {} with {}", &layers == &model.attention.front() ? "" : ",", layers.num_layers, kind);
  }
  return text + "\n";
}

Json model_json(const PlanModel& model) {
  Json attention = Json::array();
  for (const AttentionLayers& layers : model.attention) {
    attention.push_back({{"layers", layers.num_layers},
                         {"weight_elements", layers.weight_elements},
                         {"cached_elements_per_token", layers.cached_elements_per_token + layers.index_elements},
                         {"window_tokens", layers.window_tokens},
                         {"tokens_per_summary", layers.tokens_per_summary},
                         {"chosen_tokens", layers.chosen_tokens},
                         {"state_elements", layers.state_elements}});
  }
  return {{"parameters", model.parameters()}, {"active_parameters", model.active_parameters()},
          {"layers", model.num_layers},       {"moe_layers", model.num_moe_layers},
          {"hidden", model.hidden},           {"routed_hidden", model.routed_hidden},
          {"experts", model.num_experts},     {"top_k", model.top_k},
          {"expert_ffn", model.expert_ffn},   {"dense_ffn", model.dense_ffn},
          {"shared_ffn", model.shared_ffn},   {"attention", attention}};
}

Json plan_json(const PlanRequest& request, const Plan& plan) {
  Json terms = Json::array();
  for (const PlanTerm& term : plan.terms) terms.push_back(term_json(term));
  const PlanChoice& choice = plan.choice;
  return {{"name", choice.name()},
          {"ep", choice.num_ranks},
          {"tp", choice.tensor_ranks},
          {"dp", choice.num_replicas},
          {"redundant_experts", choice.num_redundant},
          {"dispatcher", choice.mode == nullptr ? "local" : std::string(choice.mode->name)},
          {"sms", choice.num_sms},
          {"two_batch_overlap", choice.two_batches},
          {"feasible", is_feasible(plan)},
          {"why_not", plan.refusals},
          {"step_us", plan.step_us},
          {"step_low_us", plan.step_low_us},
          {"step_high_us", plan.step_high_us},
          {"tokens_per_s_per_gpu", plan.tokens_per_s_per_gpu},
          {"busiest_rank_factor", plan.counts.busiest_factor},
          {"binding", to_string(plan.binding)},
          {"layer_us", plan.layer_us},
          {"layer_low_us", plan.layer_us * plan.step_low_us / plan.step_us},
          {"layer_high_us", plan.layer_us * plan.step_high_us / plan.step_us},
          {"overlap_hides_us", plan.hidden_us},
          {"network", crossing_json(request, plan)},
          {"terms", terms},
          {"memory", memory_json(plan.memory)}};
}

Json cluster_json(const Cluster& cluster) {
  Json fields = Json::object();
  for (const ClusterFieldInfo& info : cluster_fields()) {
    const Constant& constant = cluster.constant(info.field);
    fields[std::string(info.name)] = {{"value", constant.value}, {"source", constant.source}, {"date", constant.date}};
  }
  return {{"name", cluster.name}, {"gpu_architecture", cluster.gpu_architecture}, {"constants", fields}};
}

Json request_json(const PlanRequest& request) {
  constexpr std::array<std::string_view, 3> kWorkloads = {"prefill", "decode", "training"};
  const bool grows = request.global_tokens <= 0;
  return {{"workload", kWorkloads[static_cast<std::size_t>(request.workload)]},
          {"objective", request.objective == Objective::kLatency ? "latency" : "throughput"},
          {"tokens_per_gpu", grows ? Json(request.tokens_per_gpu) : Json()},
          {"global_tokens", grows ? Json() : Json(request.global_tokens)},
          {"sequence_tokens", request.context_tokens},
          {"precision", to_string(request.precision)},
          {"max_step_us", request.max_step_us > 0 ? Json(request.max_step_us) : Json()}};
}

/// Times of terms of two plans side by side; a term that one does not have takes no time there.
std::vector<std::pair<std::string, std::pair<double, double>>> paired_terms(const Plan& first, const Plan& second) {
  std::vector<std::pair<std::string, std::pair<double, double>>> pairs;
  const auto add = [&](const std::string& name, double us, bool is_first) {
    auto found = std::find_if(pairs.begin(), pairs.end(), [&](const auto& entry) { return entry.first == name; });
    if (found == pairs.end()) found = pairs.insert(pairs.end(), {name, {0.0, 0.0}});
    (is_first ? found->second.first : found->second.second) += us;
  };
  for (const PlanTerm& term : first.terms) add(std::string(term.name), term.us, true);
  for (const PlanTerm& term : second.terms) add(std::string(term.name), term.us, false);
  add("overlap", -first.hidden_us, true);
  add("overlap", -second.hidden_us, false);
  return pairs;
}

bool intervals_overlap(const Plan& a, const Plan& b) {
  return a.step_low_us <= b.step_high_us && b.step_low_us <= a.step_high_us;
}

}  // namespace

std::string render_plan_report(const PlanReport& report, int num_shown) {
  const PlanRequest& request = *report.request;
  std::string text =
      fmt::format("{} on {}: {} experts, top {}, {} tokens per GPU and step, {} experts\n{}\n", request.model.name,
                  request.cluster.name, request.model.num_experts, request.model.top_k,
                  request.global_tokens > 0 ? fmt::format("{} / EP", request.global_tokens)
                                            : fmt::format("{}", request.tokens_per_gpu),
                  to_string(request.precision), render_model(request.model));
  text += render_plans(report.plans, num_shown) + render_refusals(report.plans);
  if (report.plans.empty() || !is_feasible(report.plans.front())) return text;
  const Plan& best = report.plans.front();
  text += fmt::format("\n{}\n\n", best.choice.name()) + render_terms(best) + "\n" + render_memory(best.memory);
  return text + render_rest(report);
}

Json plan_report_json(const PlanReport& report) {
  const PlanRequest& request = *report.request;
  Json plans = Json::array();
  for (const Plan& plan : report.plans) plans.push_back(plan_json(request, plan));
  Json flips = Json::array();
  for (const PlanFlip& flip : report.flips) {
    flips.push_back(
        {{"assumption", flip.assumption}, {"best", flip.best}, {"step_us", flip.step_us}, {"flips", flip.flips}});
  }
  const bool has_best = !report.plans.empty() && is_feasible(report.plans.front());
  Json flip_map = Json::array();
  for (const FlipCell& cell : report.flip_map) {
    flip_map.push_back({{"tokens_factor", cell.tokens_factor},
                        {"network_factor", cell.network_factor},
                        {"best", cell.best},
                        {"ep", cell.num_ranks},
                        {"step_us", cell.step_us}});
  }
  Json crossovers = Json::array();
  for (const CrossoverPoint& point : report.crossovers) {
    crossovers.push_back(
        {{"from_tokens", point.tokens}, {"dispatcher", point.mode}, {"exchange_us", point.exchange_us}});
  }
  Json sms = Json::array();
  for (const SmPoint& point : report.sm_points) {
    sms.push_back({{"sms", point.num_sms}, {"exchange_us", point.exchange_us}, {"us_per_sm", point.us_per_sm}});
  }
  Json measurements = Json::array();
  for (const NextMeasurement& next : report.measurements) {
    measurements.push_back(
        {{"what", next.what}, {"command", next.command}, {"file", next.file}, {"spread_us", next.spread_us}});
  }
  Json unmeasured = Json::array();
  for (const UnmeasuredTerm& term : report.unmeasured) {
    unmeasured.push_back({{"name", term.name}, {"remedy", term.remedy}, {"spread_us", term.spread_us}});
  }
  return {{"tool", "epistle plan"},
          {"model", request.model.name},
          {"model_sizes", model_json(request.model)},
          {"request", request_json(request)},
          {"cluster", cluster_json(request.cluster)},
          {"plans", plans},
          {"flips", flips},
          {"flip_map", flip_map},
          {"crossovers", crossovers},
          {"sms", sms},
          {"in_network_reduction", has_best ? reduction_json(request, report.plans.front()) : Json()},
          {"next_measurements", measurements},
          {"unmeasured_terms", unmeasured}};
}

std::string render_explanation(const Plan& first, const Plan& second) {
  Table table({{"term of a layer", Align::kLeft},
               {first.choice.name(), Align::kRight},
               {second.choice.name(), Align::kRight},
               {"difference", Align::kRight}});
  const auto difference = [](double us) { return (us < 0 ? "-" : "+") + format_us(std::fabs(us)); };
  const auto signed_us = [](double us) { return us < 0 ? "-" + format_us(-us) : format_us(us); };
  for (const auto& [name, us] : paired_terms(first, second)) {
    table.add_row({name, signed_us(us.first), signed_us(us.second), difference(us.second - us.first)});
  }
  table.add_row(
      {"layer", format_us(first.layer_us), format_us(second.layer_us), difference(second.layer_us - first.layer_us)});
  table.add_row(
      {"step", format_us(first.step_us), format_us(second.step_us), difference(second.step_us - first.step_us)});
  table.add_row({"tokens/s/GPU", format_count(std::llround(first.tokens_per_s_per_gpu)),
                 format_count(std::llround(second.tokens_per_s_per_gpu)), "-"});
  table.add_row({"memory", format_gb(first.memory.total()), format_gb(second.memory.total()), "-"});
  table.add_row({"bound by", std::string(to_string(first.binding)), std::string(to_string(second.binding)), "-"});
  std::string text = table.render();
  for (const Plan* const plan : {&first, &second}) {
    if (!is_feasible(*plan)) text += fmt::format("{} is not feasible: {}\n", plan->choice.name(), join(plan->refusals));
  }
  if (intervals_overlap(first, second)) {
    text += "Their intervals overlap: measure before you believe the order.\n";
  }
  return text;
}

Json explanation_json(const PlanRequest& request, const Plan& first, const Plan& second) {
  Json terms = Json::array();
  for (const auto& [name, us] : paired_terms(first, second)) {
    terms.push_back({{"name", name}, {"first_us", us.first}, {"second_us", us.second}});
  }
  return {{"tool", "epistle plan --explain"},
          {"first", plan_json(request, first)},
          {"second", plan_json(request, second)},
          {"terms", terms},
          {"intervals_overlap", intervals_overlap(first, second)}};
}

}  // namespace epistle::cli
