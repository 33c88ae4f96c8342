#include "fabric/rails.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

// Of one host, or slower than tcp wherever that is: taken only where they are named.
constexpr std::array<std::string_view, 6> kOnlyByName = {"shm", "udp", "sockets", "net", "sm2", "ofi_mrail"};
// Cards with addresses of their own, which sit beside the one that the hosts meet over and all reach each other.
constexpr std::array<std::string_view, 2> kAllCards = {"verbs", "efa"};

std::string_view core_of(const FabricWay& way) {
  return std::string_view(way.provider).substr(0, way.provider.find(';'));
}

template <typename Names>
bool has_name(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_named(const FabricWay& way, const std::string& nic) { return way.domain == nic || way.address == nic; }

bool may_be_taken(const FabricWay& way, const FabricRequest& request) {
  if (request.provider.empty() && has_name(kOnlyByName, core_of(way))) return false;
  if (!request.nics.empty()) {
    return std::any_of(request.nics.begin(), request.nics.end(), [&](const auto& nic) { return is_named(way, nic); });
  }
  return way.address.empty() || request.address.empty() || has_name(kAllCards, core_of(way)) ||
         way.address == request.address;
}

/// Names in the order of people: "mlx5_2" before "mlx5_10".
bool comes_before(std::string_view left, std::string_view right) {
  const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  const auto number_at = [&](std::string_view text) {
    return text.substr(0,
                       static_cast<std::size_t>(std::find_if_not(text.begin(), text.end(), is_digit) - text.begin()));
  };
  while (!left.empty() && !right.empty()) {
    const std::string_view left_number = number_at(left);
    const std::string_view right_number = number_at(right);
    if (!left_number.empty() && !right_number.empty() && left_number != right_number) {
      return left_number.size() != right_number.size() ? left_number.size() < right_number.size()
                                                       : left_number < right_number;
    }
    if (left.front() != right.front()) return left.front() < right.front();
    left.remove_prefix(1);
    right.remove_prefix(1);
  }
  return left.size() < right.size();
}

std::size_t place_of(const FabricWay& way, const std::vector<std::string>& nics) {
  const auto found = std::find_if(nics.begin(), nics.end(), [&](const auto& nic) { return is_named(way, nic); });
  return static_cast<std::size_t>(found - nics.begin());
}

std::string describe_all(const std::vector<FabricWay>& ways) {
  std::string text;
  for (const FabricWay& way : ways) {
    text += fmt::format("{}{} over {} ({})", text.empty() ? "" : ", ", way.provider, way.domain, way.address);
  }
  return text.empty() ? "none" : text;
}

}  // namespace

std::vector<std::size_t> list_rails(const std::vector<FabricWay>& ways, const FabricRequest& request) {
  std::vector<std::size_t> rails;
  for (std::size_t idx = 0; idx < ways.size(); ++idx) {
    if (!may_be_taken(ways[idx], request)) continue;
    const auto is_same_card = [&](std::size_t other) {
      if (!request.nics.empty()) return place_of(ways[other], request.nics) == place_of(ways[idx], request.nics);
      return ways[other].domain == ways[idx].domain;
    };
    if (!rails.empty() && ways[rails.front()].provider != ways[idx].provider) continue;
    if (std::none_of(rails.begin(), rails.end(), is_same_card)) rails.push_back(idx);
  }
  if (request.nics.empty()) {
    // Where nothing tells cards apart for this host, libfabric's first is taken.
    const bool all_cards = !rails.empty() && has_name(kAllCards, core_of(ways[rails.front()]));
    if (!all_cards && rails.size() > 1) rails.resize(1);
    std::stable_sort(rails.begin(), rails.end(),
                     [&](std::size_t a, std::size_t b) { return comes_before(ways[a].domain, ways[b].domain); });
  } else {
    std::stable_sort(rails.begin(), rails.end(), [&](std::size_t a, std::size_t b) {
      return place_of(ways[a], request.nics) < place_of(ways[b], request.nics);
    });
  }
  return rails;
}

std::size_t choose_rail(const std::vector<FabricWay>& ways, const FabricRequest& request) {
  const std::vector<std::size_t> rails = list_rails(ways, request);
  // All that are named, or ranks of one index would take different cards on different hosts.
  if (!rails.empty() && (request.nics.empty() || rails.size() == request.nics.size())) {
    return rails[static_cast<std::size_t>(request.rail) % rails.size()];
  }
  std::string wanted;
  if (!request.provider.empty()) wanted += fmt::format(" '{}'", request.provider);
  wanted += " for one-sided writes";
  if (!request.nics.empty()) {
    wanted += fmt::format(" over all of {}", fmt::join(request.nics, ", "));
  } else if (!request.address.empty()) {
    wanted += " at " + request.address;
  }
  throw Error(ErrorCode::kUnsupported,
              fmt::format("libfabric has no provider{}; it has: {}; choose with EPISTLE_FABRIC_PROVIDER, "
                          "EPISTLE_FABRIC_NICS and EPISTLE_INTERFACE, or install one (fi_info lists them)",
                          wanted, describe_all(ways)));
}

std::vector<std::string> parse_nics(const std::string& text) {
  std::vector<std::string> nics;
  std::string_view rest = text;
  while (!text.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    if (end == 0) {
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("EPISTLE_FABRIC_NICS is '{}'; it must be names or addresses of network cards, separated by "
                      "commas (eth0,eth1)",
                      text));
    }
    nics.emplace_back(rest.substr(0, end));
    if (end == rest.size()) break;
    rest.remove_prefix(end + 1);
  }
  return nics;
}

}  // namespace epistle
