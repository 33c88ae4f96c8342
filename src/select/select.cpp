#include "select/select.hpp"

#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>

#include "select/backends.hpp"
#include "select/flags.hpp"
#include "select/rule.hpp"

namespace epistle {
namespace {

SelectReason to_reason(const SelectRule& rule, const SelectFacts& facts) {
  return {.rule = std::string(rule.id),
          .text = fill_text(rule.text, facts),
          .source = fmt::format("{}, {}", rule.source, rule.date)};
}

bool is_available(const SelectBackend& backend, const SelectFacts& facts) {
  return backend.always_there || facts.has(backend.name);
}

/// What its score would be, and why, were it there and able.
SelectCandidate score_backend(const SelectBackend& backend, const std::vector<SelectRule>& fired,
                              const SelectFacts& facts) {
  SelectCandidate candidate;
  candidate.backend = backend.name;
  for (const SelectRule& rule : fired) {
    if (rule.effect != RuleEffect::kScore || rule.backend != backend.name) continue;
    candidate.score += rule.points;
    candidate.reasons.push_back(to_reason(rule, facts));
  }
  return candidate;
}

std::vector<SelectRejection> reject_backend(const SelectBackend& backend, const std::vector<SelectRule>& fired,
                                            const SelectFacts& facts) {
  std::vector<SelectRejection> rejections;
  if (!is_available(backend, facts)) {
    rejections.push_back(
        {.backend = std::string(backend.name),
         .reason = fmt::format("unavailable: {} is not {}; {}", backend.package,
                               facts.query.availability.empty() ? "known to be installed" : facts.query.availability,
                               backend.fix),
         .rule = "availability"});
  }
  for (const SelectRule& rule : fired) {
    if (rule.effect != RuleEffect::kReject || rule.backend != backend.name) continue;
    rejections.push_back({.backend = std::string(backend.name),
                          .reason = fmt::format("{} {}", backend.title, fill_text(rule.text, facts)),
                          .rule = std::string(rule.id)});
  }
  return rejections;
}

/// One entry per backend: the first reason is its rule, the others stand behind it.
SelectRejection join(const std::vector<SelectRejection>& rejections) {
  SelectRejection joined = rejections.front();
  for (std::size_t idx = 1; idx < rejections.size(); ++idx) {
    joined.reason += fmt::format(". Besides, {} ({})", rejections[idx].reason, rejections[idx].rule);
  }
  return joined;
}

/// Says of the first candidate which one the rules would have preferred, and why it is not that.
void explain_fallback(Selection& selection, const std::vector<SelectCandidate>& ruled_out) {
  SelectCandidate& first = selection.candidates.front();
  for (const SelectCandidate& other : ruled_out) {
    if (other.score <= first.score) continue;
    const auto found = std::find_if(selection.rejected.begin(), selection.rejected.end(),
                                    [&](const SelectRejection& rejected) { return rejected.backend == other.backend; });
    first.reasons.push_back(
        {.rule = "fallback",
         .text =
             fmt::format("{} would come first here, but cannot be taken: {}. What is missing is a finding about the "
                         "environment, not a result; {} is the fallback that remains",
                         other.backend, found->reason, first.backend),
         .source = fmt::format("{}, {}", source::kGuide, source::kGuideDate)});
  }
}

void replace_all(std::string& text, std::string_view name, const std::string& value) {
  for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + value.size())) {
    text.replace(at, name.size(), value);
  }
}

}  // namespace

std::string fill_text(std::string_view text, const SelectFacts& facts) {
  std::string filled(text);
  if (filled.find('{') == std::string::npos) return filled;
  const SelectModel& model = facts.query.model;
  const std::array<std::pair<std::string_view, std::string>, 20> values = {{
      {"{ep}", std::to_string(facts.query.ep)},
      {"{hidden}", std::to_string(model.hidden)},
      {"{experts}", std::to_string(model.num_experts)},
      {"{top_k}", std::to_string(model.top_k)},
      {"{tokens}", std::to_string(facts.query.tokens_per_rank.value_or(0))},
      {"{domain}", std::to_string(facts.domain_ranks)},
      {"{domains}", std::to_string(facts.num_domains)},
      {"{gpus_per_domain}", std::to_string(facts.query.cluster.gpus_per_domain())},
      {"{gpu}", facts.query.cluster.title},
      {"{sms}", std::to_string(facts.query.cluster.num_sms())},
      {"{precision}", std::string(to_string(facts.query.precision))},
      {"{phase}", std::string(to_string(facts.query.phase))},
      {"{megatron}", to_string(facts.query.megatron)},
      {"{crossover}", std::to_string(low_latency_limit(facts.query.ep))},
      {"{fabric}", std::string(to_string(facts.query.fabric))},
      {"{nics}", std::to_string(facts.query.cluster.nics_per_domain())},
      {"{rails}", std::to_string(facts.query.cluster.num_rails())},
      {"{rows_per_expert}", fmt::format("{:.2f}", facts.network_rows_per_expert())},
      {"{rows_per_rank}", fmt::format("{:.2f}", facts.network_rows_per_rank())},
      {"{rows_per_domain}", fmt::format("{:.2f}", facts.network_rows_per_domain())},
  }};
  for (const auto& [name, value] : values) replace_all(filled, name, value);
  return filled;
}

std::vector<SelectRule> all_select_rules() {
  std::vector<SelectRule> rules;
  for (const auto part : {hardware_rules(), workload_rules(), limit_rules(), advice_rules(), trap_rules()}) {
    rules.insert(rules.end(), part.begin(), part.end());
  }
  return rules;
}

Selection select_dispatcher(const SelectFacts& facts) {
  std::vector<SelectRule> fired;
  for (const SelectRule& rule : all_select_rules()) {
    if (rule.applies(facts)) fired.push_back(rule);
  }
  Selection selection;
  std::vector<SelectCandidate> ruled_out;
  for (const SelectBackend& backend : select_backends()) {
    SelectCandidate candidate = score_backend(backend, fired, facts);
    const auto rejections = reject_backend(backend, fired, facts);
    if (!rejections.empty()) {
      selection.rejected.push_back(join(rejections));
      ruled_out.push_back(std::move(candidate));
      continue;
    }
    describe_candidate(candidate, facts);
    selection.candidates.push_back(std::move(candidate));
  }
  // Equal scores keep the order of the table of backends.
  std::stable_sort(selection.candidates.begin(), selection.candidates.end(),
                   [](const SelectCandidate& left, const SelectCandidate& right) { return left.score > right.score; });
  explain_fallback(selection, ruled_out);
  for (const SelectRule& rule : fired) {
    if (rule.effect == RuleEffect::kWarn) selection.warnings.push_back(to_reason(rule, facts));
    if (rule.effect == RuleEffect::kAdvise) selection.advice.push_back(to_reason(rule, facts));
  }
  return selection;
}

}  // namespace epistle
