#include "dispatch/link/domain_sums.hpp"

#include <algorithm>

#include <fmt/format.h>

namespace epistle {

void put_domains_first(std::vector<SumOrder>& orders) {
  std::erase(orders, SumOrder::kDomains);
  orders.insert(orders.begin(), SumOrder::kDomains);
}

std::optional<std::string> cannot_sum_over_domains(const ResolvedConfig& config, int num_ranks, Device device) {
  const int num_domains = num_ranks / config.ranks_of_domain(num_ranks);
  if (num_domains == 1 || config.order == SumOrder::kDomains || config.combine_hidden == 0) return std::nullopt;
  return fmt::format(
      "dispatcher 'hybrid' on {}: it sums inside a domain before rows cross to another, so over {} domains its order "
      "is {}, not {}; take that, or {}",
      to_string(device), num_domains, to_string(SumOrder::kDomains), to_string(config.order),
      device == Device::kHost ? "direct or alltoall" : "direct");
}

}  // namespace epistle
