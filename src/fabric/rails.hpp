// Which of the ways over the network a rank takes. Hosts with several cards give the ranks of one index the card of one
// index, so that what they say to each other stays on one rail.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "fabric/fabric.hpp"

namespace epistle {

/// The ways that the request allows, by their numbers, one for every card: those of the first provider that has any.
/// Cards come in the order in which the request names them; where it names none, by name, numbers in it by value.
[[nodiscard]] std::vector<std::size_t> list_rails(const std::vector<FabricWay>& ways, const FabricRequest& request);

/// The rail of the request's rank. Throws kUnsupported, with what there is.
[[nodiscard]] std::size_t choose_rail(const std::vector<FabricWay>& ways, const FabricRequest& request);

/// "eth0,eth1" as two names. Throws kInvalidArgument for empty ones.
[[nodiscard]] std::vector<std::string> parse_nics(const std::string& text);

}  // namespace epistle
