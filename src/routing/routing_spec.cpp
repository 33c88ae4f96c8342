#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <optional>
#include <system_error>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

namespace epistle {
namespace {

struct PlainForm {
  std::string_view name;
  RoutingKind kind;
};
constexpr std::array kPlainForms = {PlainForm{"uniform", RoutingKind::kUniform},
                                    PlainForm{"balanced", RoutingKind::kBalanced},
                                    PlainForm{"forced-random", RoutingKind::kForcedRandom}};

constexpr std::string_view kZipfPrefix = "zipf:";
constexpr std::string_view kLognormalPrefix = "lognormal:";
constexpr std::string_view kTracePrefix = "trace:";

[[noreturn]] void reject_spec(std::string_view text, std::string_view reason) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("routing '{}': {}; expected uniform, balanced, forced-random, zipf:A (A >= 0), lognormal:S "
                          "(S >= 0) or trace:FILE",
                          text, reason));
}

std::optional<std::string_view> strip_prefix(std::string_view text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return std::nullopt;
  return text.substr(prefix.size());
}

double parse_parameter(std::string_view text, std::string_view number) {
  double value = 0.0;
  const char* const end = number.data() + number.size();
  const auto result = std::from_chars(number.data(), end, value);
  if (result.ec == std::errc::result_out_of_range) reject_spec(text, fmt::format("'{}' is out of range", number));
  if (result.ec != std::errc() || result.ptr != end) reject_spec(text, fmt::format("'{}' is not a number", number));
  if (!std::isfinite(value) || value < 0.0) reject_spec(text, fmt::format("'{}' is not a finite number >= 0", number));
  return value;
}

}  // namespace

RoutingSpec RoutingSpec::parse(std::string_view text) {
  for (const PlainForm& form : kPlainForms) {
    if (text == form.name) return {.kind = form.kind, .parameter = 0.0, .trace_path = {}};
  }
  if (const auto number = strip_prefix(text, kZipfPrefix)) {
    return {.kind = RoutingKind::kZipf, .parameter = parse_parameter(text, *number), .trace_path = {}};
  }
  if (const auto number = strip_prefix(text, kLognormalPrefix)) {
    return {.kind = RoutingKind::kLognormal, .parameter = parse_parameter(text, *number), .trace_path = {}};
  }
  if (const auto path = strip_prefix(text, kTracePrefix)) {
    if (path->empty()) reject_spec(text, "the file name is missing");
    return {.kind = RoutingKind::kTrace, .parameter = 0.0, .trace_path = std::string(*path)};
  }
  reject_spec(text, "not a known form");
}

std::string RoutingSpec::to_string() const {
  for (const PlainForm& form : kPlainForms) {
    if (kind == form.kind) return std::string(form.name);
  }
  if (kind == RoutingKind::kTrace) return fmt::format("{}{}", kTracePrefix, trace_path);
  // fmt prints the shortest text that reads back as the same double, so the parsed text gives an equal spec.
  return fmt::format("{}{}", kind == RoutingKind::kZipf ? kZipfPrefix : kLognormalPrefix, parameter);
}

}  // namespace epistle
