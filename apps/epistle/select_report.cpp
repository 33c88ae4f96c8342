#include "select_report.hpp"

#include <algorithm>
#include <cstddef>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "report/format.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

Json reasons_json(const std::vector<SelectReason>& reasons) {
  Json list = Json::array();
  for (const SelectReason& reason : reasons) {
    list.push_back({{"rule", reason.rule}, {"text", reason.text}, {"source", reason.source}});
  }
  return list;
}

Json candidate_json(const SelectCandidate& candidate) {
  Json environment = Json::object();
  for (const auto& [name, value] : candidate.environment) environment[name] = value;
  return {{"backend", candidate.backend},
          {"mode", candidate.mode},
          {"score", candidate.score},
          {"reasons", reasons_json(candidate.reasons)},
          {"flags",
           {{"megatron", candidate.flags.megatron},
            {"megatron_before_0_20", candidate.flags.megatron_old},
            {"megatron_bridge", candidate.flags.megatron_bridge},
            {"vllm", candidate.flags.vllm},
            {"sglang", candidate.flags.sglang}}},
          {"env", environment},
          {"num_sms", candidate.num_sms > 0 ? Json(candidate.num_sms) : Json(nullptr)},
          {"sweep_num_sms", candidate.sweep},
          {"buffer_bytes", candidate.buffer_bytes >= 0 ? Json(candidate.buffer_bytes) : Json(nullptr)}};
}

std::string render_reasons(const char* title, const std::vector<SelectReason>& reasons) {
  if (reasons.empty()) return {};
  std::string text = fmt::format("\n{}\n", title);
  for (const SelectReason& reason : reasons)
    text += fmt::format("  {}\n    [{}: {}]\n", reason.text, reason.rule, reason.source);
  return text;
}

std::string render_flags(const SelectCandidate& candidate) {
  std::string text;
  const auto add = [&](const char* engine, const std::string& flags) {
    if (!flags.empty()) text += fmt::format("  {:<22} {}\n", engine, flags);
  };
  add("Megatron", candidate.flags.megatron);
  if (candidate.flags.megatron_old != candidate.flags.megatron)
    add("Megatron before 0.20", candidate.flags.megatron_old);
  add("Megatron-Bridge", candidate.flags.megatron_bridge);
  add("vLLM", candidate.flags.vllm);
  add("SGLang", candidate.flags.sglang);
  for (const auto& [name, value] : candidate.environment)
    text += fmt::format("  {:<22} export {}={}\n", "environment", name, value);
  if (candidate.num_sms > 0)
    text +=
        fmt::format("  {:<22} start with {}, sweep {}\n", "SMs", candidate.num_sms, fmt::join(candidate.sweep, ", "));
  if (candidate.buffer_bytes >= 0)
    text += fmt::format("  {:<22} {} per rank, where every routing fits\n", "buffers",
                        format_bytes(candidate.buffer_bytes));
  return text;
}

}  // namespace

Json selection_json(const SelectFacts& facts, const Selection& selection) {
  Json candidates = Json::array();
  for (const SelectCandidate& candidate : selection.candidates) candidates.push_back(candidate_json(candidate));
  Json rejected = Json::array();
  for (const SelectRejection& rejection : selection.rejected) {
    rejected.push_back({{"backend", rejection.backend}, {"reason", rejection.reason}, {"rule", rejection.rule}});
  }
  const SelectQuery& query = facts.query;
  return {{"query",
           {{"hardware", query.cluster.name},
            {"ep", query.ep},
            {"model", query.model.name},
            {"hidden", query.model.hidden},
            {"num_experts", query.model.num_experts},
            {"top_k", query.model.top_k},
            {"precision", to_string(query.precision)},
            {"phase", to_string(query.phase)},
            {"fabric", to_string(query.fabric)},
            {"available", query.available},
            {"ranks_per_domain", facts.domain_ranks},
            {"num_domains", facts.num_domains},
            {"nics_per_domain", query.cluster.nics_per_domain()},
            {"rails", query.cluster.num_rails()},
            {"network_rows_per_token",
             {{"per_expert", facts.network_rows_per_expert()},
              {"per_rank", facts.network_rows_per_rank()},
              {"per_domain", facts.network_rows_per_domain()}}}}},
          {"candidates", candidates},
          {"rejected", rejected},
          {"warnings", reasons_json(selection.warnings)},
          {"advice", reasons_json(selection.advice)}};
}

std::string render_selection(const SelectFacts& facts, const Selection& selection) {
  const SelectQuery& query = facts.query;
  std::string text =
      fmt::format("{}, EP {} ({} of {} ranks in a domain), hidden {}, {} experts, top-{}, {}, {}\n\n",
                  query.cluster.title, query.ep, facts.domain_ranks, query.ep, query.model.hidden,
                  query.model.num_experts, query.model.top_k, to_string(query.precision), to_string(query.phase));
  Table table({{"rank", Align::kRight}, {"backend", Align::kLeft}, {"mode", Align::kLeft}, {"score", Align::kRight}});
  for (std::size_t idx = 0; idx < selection.candidates.size(); ++idx) {
    const SelectCandidate& candidate = selection.candidates[idx];
    table.add_row({std::to_string(idx + 1), candidate.backend, candidate.mode, fmt::format("{}", candidate.score)});
  }
  text += table.render();
  const SelectCandidate& first = selection.candidates.front();
  text += render_reasons(fmt::format("Why {}", first.backend).c_str(), first.reasons);
  text += fmt::format("\nTo paste\n{}", render_flags(first));
  text += render_reasons("WARNING", selection.warnings);
  text += render_reasons("Advice", selection.advice);
  text += "\nNot taken\n";
  for (const SelectRejection& rejection : selection.rejected) {
    text += fmt::format("  {}: {}\n    [{}]\n", rejection.backend, rejection.reason, rejection.rule);
  }
  return text;
}

Json check_json(const check::ConfigFile& file, const check::CheckReport& report) {
  Json findings = Json::array();
  for (const check::Finding& finding : report.findings) {
    findings.push_back({{"rule", finding.rule},
                        {"severity", to_string(finding.severity)},
                        {"line", finding.line},
                        {"flag", finding.flag},
                        {"message", finding.message},
                        {"fix", finding.fix}});
  }
  Json runs = Json::array();
  for (const check::RunReport& run : report.runs) {
    runs.push_back({{"engine", to_string(run.engine)}, {"line", run.line}, {"would_run", run.would_run}});
  }
  return {{"file", file.name},
          {"engine", to_string(report.engine)},
          {"would_run", report.would_run},
          {"findings", findings},
          {"runs", runs}};
}

std::string render_check(const check::ConfigFile& file, const check::CheckReport& report) {
  if (report.runs.empty()) return fmt::format("{}: no run of Megatron, vLLM or SGLang found\n", file.name);
  std::string text;
  for (const check::RunReport& run : report.runs) {
    text += fmt::format("{}:{}: {} would run {}\n", file.name, run.line, to_string(run.engine), run.would_run);
  }
  for (const check::Finding& finding : report.findings) {
    text += fmt::format("{}:{}: {}: {}\n    fix: {} [{}]\n", file.name, finding.line, to_string(finding.severity),
                        finding.message, finding.fix, finding.rule);
  }
  if (report.findings.empty()) text += "nothing found\n";
  return text;
}

}  // namespace epistle::cli
