// Contention. Every rank's way into its domain and to its network cards carries what all its peers send and receive
// over it, each direction for itself; where GPUs share a card, their bytes share it. If ranks order their sends well,
// an exchange takes as long as its most loaded link, for a schedule that reaches this bound always exists (a bipartite
// multigraph of degree d has an edge colouring of d colours). How far real ones are from nominal rates is calibrated.
#include "simulate/mode_times.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include <fmt/format.h>

#include "cost/fit/families.hpp"
#include "plan/alltoall_extras.hpp"
#include "plan/observations.hpp"

namespace epistle::simulate {
namespace {

Travel travel_of(const ExchangeMode& mode) {
  switch (mode.kind) {
    case ExchangeKind::kLowLatency:
    case ExchangeKind::kAllToAll:
      return Travel::kPerExpert;
    case ExchangeKind::kThroughput:
      return mode.one_domain ? Travel::kPerRank : Travel::kPerDomain;
    case ExchangeKind::kOneSided:
    case ExchangeKind::kFused:
    case ExchangeKind::kGather:
      break;
  }
  return Travel::kPerRank;
}

/// Rows of every rank over its links, in the direction of a dispatch.
std::vector<LinkRows> link_rows(const ExchangeMode& mode, const TrafficCounter& traffic) {
  const std::span<const LinkRows> counted = traffic.links(travel_of(mode));
  std::vector<LinkRows> rows(counted.begin(), counted.end());
  if (mode.kind != ExchangeKind::kGather) return rows;
  // Every token goes to every rank, whatever the routing.
  const RankGrid& grid = traffic.grid();
  std::vector<std::int64_t> domain_tokens(static_cast<std::size_t>(grid.num_domains()), 0);
  std::vector<std::int64_t> rail_tokens(static_cast<std::size_t>(grid.ranks_per_domain), 0);
  std::vector<std::int64_t> rail_ranks(rail_tokens.size(), 0);
  std::vector<std::int64_t> domain_ranks(domain_tokens.size(), 0);
  for (std::int32_t rank = 0; rank < grid.num_ranks; ++rank) {
    const std::int64_t tokens = traffic.ranks()[static_cast<std::size_t>(rank)].num_tokens;
    domain_tokens[static_cast<std::size_t>(grid.domain_of(rank))] += tokens;
    ++domain_ranks[static_cast<std::size_t>(grid.domain_of(rank))];
    ++rail_ranks[static_cast<std::size_t>(grid.rail_of(rank))];
  }
  for (std::int32_t rank = 0; rank < grid.num_ranks; ++rank) {
    const auto domain = static_cast<std::size_t>(grid.domain_of(rank));
    const std::int64_t tokens = traffic.ranks()[static_cast<std::size_t>(rank)].num_tokens;
    LinkRows& link = rows[static_cast<std::size_t>(rank)];
    link.self = tokens;
    link.domain_out = tokens * (domain_ranks[domain] - 1);
    link.domain_in = domain_tokens[domain] - tokens;
    link.network_out = tokens * (grid.num_ranks - domain_ranks[domain]);
    link.network_in = traffic.num_tokens() - domain_tokens[domain];
    link.other_rail = link.network_out - tokens * (rail_ranks[static_cast<std::size_t>(grid.rail_of(rank))] - 1);
  }
  return rows;
}

/// On the way back.
void turn_round(std::vector<LinkRows>& rows) {
  for (LinkRows& link : rows) {
    std::swap(link.domain_out, link.domain_in);
    std::swap(link.network_out, link.network_in);
  }
}

/// The exchange of one mode in one direction.
class Exchange {
 public:
  Exchange(const ModeRules& rules, const ExchangeMode& mode, const TrafficCounter& traffic, bool dispatch)
      : rules_(rules),
        mode_(mode),
        traffic_(traffic),
        rows_(link_rows(mode, traffic)),
        dispatch_(dispatch),
        curve_(dispatch ? mode.dispatch_curve : mode.combine_curve) {
    if (!dispatch) turn_round(rows_);
    const bool fp8 = dispatch && rules.precision != ExpertType::kBf16 && mode.kind != ExchangeKind::kAllToAll &&
                     mode.kind != ExchangeKind::kGather;
    row_bytes_ = exchange_row_bytes(rules.hidden, fp8);
    num_sms_ = chosen_sms(rules, mode);
    base_ = exchange_base(*rules.cluster, traffic.grid().num_ranks, rules.cluster->gpus_per_domain());
    share_cards();
  }

  [[nodiscard]] static std::int32_t chosen_sms(const ModeRules& rules, const ExchangeMode& mode) {
    if (mode.sms.empty()) return rules.cluster->num_sms();
    const double sms = rules.num_sms > 0 ? rules.num_sms : mode.sms.back();
    return static_cast<std::int32_t>(std::min<double>(sms, rules.cluster->num_sms()));
  }

  [[nodiscard]] ExchangeLoad load() const {
    ExchangeLoad load;
    for (const LinkRows& link : rows_) {
      load.self_bytes += bytes(link.self);
      load.domain_bytes += bytes(link.domain_out);
      load.network_bytes += bytes(link.network_out);
      load.other_rail_bytes += bytes(link.other_rail);
    }
    set_rails(load);
    load.busiest_link = busiest_link();
    set_times(load);
    return load;
  }

 private:
  [[nodiscard]] double bytes(std::int64_t rows) const { return static_cast<double>(rows) * row_bytes_; }

  /// By the rail of the card that bytes leave by.
  void set_rails(ExchangeLoad& load) const {
    const RankGrid& grid = traffic_.grid();
    if (grid.num_domains() == 1) return;
    load.rail_bytes.assign(static_cast<std::size_t>(rules_.cluster->num_rails()), 0.0);
    for (std::int32_t rank = 0; rank < grid.num_ranks && !load.rail_bytes.empty(); ++rank) {
      const std::int32_t rail = grid.rail_of(rank) / rules_.cluster->gpus_per_nic();
      load.rail_bytes[static_cast<std::size_t>(rail)] += bytes(rows_[static_cast<std::size_t>(rank)].network_out);
    }
  }

  /// Network rows of a rank as if its card were its own.
  void share_cards() {
    const auto sharing = static_cast<std::size_t>(rules_.cluster->gpus_per_nic());
    network_out_.resize(rows_.size());
    network_in_.resize(rows_.size());
    for (std::size_t first = 0; first < rows_.size(); first += sharing) {
      const std::size_t end = std::min(first + sharing, rows_.size());
      double out = 0.0;
      double in = 0.0;
      for (std::size_t rank = first; rank < end; ++rank) {
        out += bytes(rows_[rank].network_out) / static_cast<double>(sharing);
        in += bytes(rows_[rank].network_in) / static_cast<double>(sharing);
      }
      std::fill(network_out_.begin() + static_cast<std::ptrdiff_t>(first),
                network_out_.begin() + static_cast<std::ptrdiff_t>(end), out);
      std::fill(network_in_.begin() + static_cast<std::ptrdiff_t>(first),
                network_in_.begin() + static_cast<std::ptrdiff_t>(end), in);
    }
  }

  [[nodiscard]] BusiestLink busiest_link() const {
    const double sharing = rules_.cluster->gpus_per_nic();
    BusiestLink busiest;
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      const std::pair<LinkKind, double> domain_links[] = {{LinkKind::kDomainOut, bytes(rows_[rank].domain_out)},
                                                          {LinkKind::kDomainIn, bytes(rows_[rank].domain_in)}};
      const std::pair<LinkKind, double> network_links[] = {{LinkKind::kNetworkOut, network_out_[rank]},
                                                           {LinkKind::kNetworkIn, network_in_[rank]}};
      const auto visit = [&](LinkKind kind, double moved, double us) {
        if (us > busiest.us)
          busiest = {.kind = kind, .rank = static_cast<std::int32_t>(rank), .bytes = moved, .us = us};
      };
      for (const auto& [kind, moved] : domain_links) visit(kind, moved, moved / base_.link_bytes_per_us);
      for (const auto& [kind, moved] : network_links) visit(kind, sharing * moved, moved / base_.network_bytes_per_us);
    }
    return busiest;
  }

  /// The work of one rank, in the terms of the curve of its mode.
  [[nodiscard]] ExchangeWork work_of(std::size_t rank) const {
    const LinkRows& link = rows_[rank];
    const RankRows& counts = traffic_.ranks()[rank];
    ExchangeWork work = base_;
    work.self_bytes = bytes(link.self);
    work.link_bytes = std::max(bytes(link.domain_out), bytes(link.domain_in));
    work.network_bytes = std::max(network_out_[rank], network_in_[rank]);
    switch (mode_.kind) {
      case ExchangeKind::kLowLatency:
        break;
      case ExchangeKind::kThroughput:
        work.num_sms = num_sms_;
        work.row_bytes = row_bytes_;
        work.rank_rows = static_cast<double>(std::max(counts.sent_rows, counts.received_rows));
        if (work.num_domains > 1) {
          const std::int64_t own = counts.sent_domains - traffic_network_out(rank);
          work.domain_rows = static_cast<double>(std::max(link.network_out, link.network_in) + own);
          work.crossing_tokens = static_cast<double>(counts.num_tokens);
        }
        break;
      case ExchangeKind::kOneSided:
      case ExchangeKind::kFused:
        work.num_sms = num_sms_;
        // Its kernels work token by token; where more arrives than was sent, as if for so many tokens.
        work.rank_rows = std::max(static_cast<double>(counts.num_tokens),
                                  static_cast<double>(counts.received_rows) / traffic_.distinct_ranks());
        break;
      case ExchangeKind::kAllToAll:
      case ExchangeKind::kGather:
        // Curves of collectives count what crosses the network among what crosses the links.
        work.link_bytes += work.network_bytes;
        break;
    }
    return work;
  }

  [[nodiscard]] std::int64_t traffic_network_out(std::size_t rank) const {
    return traffic_.links(Travel::kPerDomain)[rank].network_out;
  }

  void set_times(ExchangeLoad& load) const {
    const CalibratedCurve& curve = rules_.calibration->curves().at(curve_);
    const ExchangeTerms terms = exchange_terms(curve.constants_at(exchange_path(*rules_.cluster, mode_)));
    double slowest_us = -1.0;
    double sum_us = 0.0;
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) {
      const double us = exchange_time(work_of(rank), terms).total_us;
      sum_us += us;
      if (us <= slowest_us) continue;
      slowest_us = us;
      load.slowest_rank = static_cast<std::int32_t>(rank);
    }
    const Forecast forecast = curve.predict(observation(work_of(static_cast<std::size_t>(load.slowest_rank))));
    load.us = forecast.us;
    load.low_us = forecast.low_us;
    load.high_us = forecast.high_us;
    // What measurements say beyond the curve goes for all ranks alike.
    load.mean_us = sum_us / static_cast<double>(rows_.size()) * (slowest_us > 0 ? forecast.us / slowest_us : 1.0);
    if (mode_.kind == ExchangeKind::kAllToAll) add_extras(load);
  }

  /// Copies are as long as the rank is busy; all wait for the counts.
  void add_extras(ExchangeLoad& load) const {
    const auto extras_of = [&](double bytes) {
      return alltoall_extras(*rules_.calibration, *rules_.cluster,
                             {.num_ranks = static_cast<double>(traffic_.grid().num_ranks),
                              .num_experts = rules_.num_experts,
                              .bytes = bytes,
                              .dispatch = dispatch_});
    };
    double sum_bytes = 0.0;
    for (std::size_t rank = 0; rank < rows_.size(); ++rank) sum_bytes += collective_bytes(rank);
    const AllToAllExtras slowest = extras_of(collective_bytes(static_cast<std::size_t>(load.slowest_rank)));
    const AllToAllExtras mean = extras_of(sum_bytes / static_cast<double>(rows_.size()));
    for (const Forecast& extra : {slowest.copying, slowest.waiting}) {
      load.us += extra.us;
      load.low_us += extra.low_us;
      load.high_us += extra.high_us;
    }
    load.mean_us += mean.copying.us + mean.waiting.us;
  }

  [[nodiscard]] double collective_bytes(std::size_t rank) const {
    const ExchangeWork work = work_of(rank);
    return work.self_bytes + work.link_bytes;
  }

  [[nodiscard]] Observation observation(const ExchangeWork& work) const {
    const double ranks = traffic_.grid().num_ranks;
    if (mode_.kind == ExchangeKind::kAllToAll || mode_.kind == ExchangeKind::kGather) {
      return collective_observation(*rules_.cluster, ranks, work.self_bytes + work.link_bytes, work);
    }
    return exchange_observation(*rules_.cluster, mode_,
                                {.tokens = rules_.tokens_per_rank,
                                 .num_ranks = ranks,
                                 .num_sms = static_cast<double>(num_sms_),
                                 .row_bytes = row_bytes_,
                                 .num_experts = rules_.num_experts},
                                work);
  }

  const ModeRules& rules_;
  const ExchangeMode& mode_;
  const TrafficCounter& traffic_;
  std::vector<LinkRows> rows_;  // in the direction of this exchange
  bool dispatch_;
  std::string curve_;
  double row_bytes_ = 0;
  std::int32_t num_sms_ = 0;
  ExchangeWork base_;
  std::vector<double> network_out_;  // bytes
  std::vector<double> network_in_;
};

std::optional<std::string> find_refusal(const ModeRules& rules, const ExchangeMode& mode, const RankGrid& grid) {
  if (auto reason = cannot_run(mode, *rules.cluster)) return reason;
  if (mode.one_domain && grid.num_domains() > 1) {
    return fmt::format("{} stays inside a domain of {} GPUs", mode.name, grid.ranks_per_domain);
  }
  if (mode.max_tokens > 0 && rules.tokens_per_rank > mode.max_tokens) {
    return fmt::format("{} takes at most {} tokens per rank, not {}", mode.name, mode.max_tokens,
                       rules.tokens_per_rank);
  }
  if (grid.num_domains() > 1 && rules.cluster->network_bytes_per_s() <= 0) {
    return std::string("the cluster has no network between domains");
  }
  return std::nullopt;
}

void set_layer(ModeStep& step) {
  const double exchange_us = step.dispatch.us + step.combine.us;
  const double mean_exchange_us = step.dispatch.mean_us + step.combine.mean_us;
  const bool fused = step.mode->kind == ExchangeKind::kFused;
  const auto together = [fused](double exchange, double gemm) {
    return fused ? std::max(exchange, gemm) : exchange + gemm;
  };
  step.layer_us = together(exchange_us, step.gemm.us);
  const double mean_us = together(mean_exchange_us, step.gemm.mean_us);
  step.straggler_factor = mean_us > 0 ? step.layer_us / mean_us : 1.0;
  // Errors of the three are independent.
  double low_square = 0.0;
  double high_square = 0.0;
  const auto add = [&](double us, double low_us, double high_us) {
    low_square += (us - low_us) * (us - low_us);
    high_square += (high_us - us) * (high_us - us);
  };
  add(step.dispatch.us, step.dispatch.low_us, step.dispatch.high_us);
  add(step.combine.us, step.combine.low_us, step.combine.high_us);
  add(step.gemm.us, step.gemm.low_us, step.gemm.high_us);
  step.layer_low_us = std::max(step.layer_us - std::sqrt(low_square), 0.0);
  step.layer_high_us = step.layer_us + std::sqrt(high_square);
}

}  // namespace

std::string_view to_string(LinkKind kind) noexcept {
  switch (kind) {
    case LinkKind::kDomainOut:
      return "domain link out";
    case LinkKind::kDomainIn:
      return "domain link in";
    case LinkKind::kNetworkOut:
      return "network card out";
    case LinkKind::kNetworkIn:
      return "network card in";
  }
  return "domain link out";
}

GemmLoad time_gemms(const ModeRules& rules, std::int64_t num_tokens, std::span<const ExpertRows> expert_rows) {
  const GemmShape shape{.global_tokens = static_cast<double>(num_tokens),
                        .num_ranks = static_cast<double>(expert_rows.size()),
                        .num_experts = rules.num_experts,
                        .top_k = rules.top_k,
                        .hidden = rules.hidden,
                        .expert_ffn = rules.expert_ffn,
                        .busiest_factor = 1.0,
                        .type = rules.precision};
  const CalibratedCurve& curve =
      rules.calibration->curves().at(fmt::format("gemm {}", epistle::to_string(rules.precision)));
  const GemmTerms terms = gemm_terms(curve.constants_at({}));
  GemmWork slowest;
  GemmLoad load;
  double slowest_us = -1.0;
  double sum_us = 0.0;
  for (std::size_t rank = 0; rank < expert_rows.size(); ++rank) {
    GemmWork work = gemm_work(*rules.cluster, shape);
    work.rows = expert_rows[rank].rows;
    work.active_experts = expert_rows[rank].active_experts;
    const double us = gemm_time(work, terms).total_us;
    sum_us += us;
    if (us <= slowest_us) continue;
    slowest_us = us;
    slowest = work;
    load.slowest_rank = static_cast<std::int32_t>(rank);
  }
  const Forecast forecast = curve.predict(gemm_observation(shape, slowest));
  load.us = forecast.us;
  load.low_us = forecast.low_us;
  load.high_us = forecast.high_us;
  load.mean_us = sum_us / static_cast<double>(expert_rows.size()) * forecast.us / slowest_us;
  return load;
}

ModeStep time_mode(const ModeRules& rules, const ExchangeMode& mode, const TrafficCounter& traffic,
                   const GemmLoad& gemms) {
  ModeStep step;
  step.mode = &mode;
  step.refusal = find_refusal(rules, mode, traffic.grid());
  if (step.refusal) return step;
  step.num_sms = Exchange::chosen_sms(rules, mode);
  step.dispatch = Exchange(rules, mode, traffic, true).load();
  step.combine = Exchange(rules, mode, traffic, false).load();
  step.gemm = gemms;
  set_layer(step);
  return step;
}

}  // namespace epistle::simulate
