// Rows of bf16 that become fp8 on their way, between two ranks that are threads of this process.
//
// What is received are rows of e4m3, half as many bytes, with an exponent byte for every 128 elements. Here the experts
// only turn them back into numbers; a real one would hand both to a GEMM of fp8. Combine takes bf16, as without. A
// token comes back once per rank that it was sent to, each element within a sixteenth of what it was.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 2;
constexpr std::int32_t kExpertsPerRank = 4;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 16;
constexpr std::int64_t kHidden = 320;  // two blocks of 128 elements, and one of 64

float from_bf16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value = 0.0F;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Cuts the lower half off: exact for what is used here.
std::uint16_t to_bf16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>(bits >> 16);
}

float from_e4m3(std::uint8_t bits) {
  const int exponent = bits >> 3 & 0xf;
  const int mantissa = bits & 7;
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

// From -1 to 1, and never close to 0, where e4m3 has fewer digits.
float element(int rank, std::int64_t token, std::int64_t column) {
  const auto step = static_cast<float>((rank * 7 + token * 5 + column * 3) % 61);
  return from_bf16(to_bf16(column % 2 == 0 ? (step + 4.0F) / 64.0F : -(step + 4.0F) / 64.0F));
}

// What the experts of a rank do: element by element, fp8 and exponent to bf16.
void dequantise(const epistle::Received& received) {
  const epistle::Rows rows = received.rows();
  const epistle::ScalesView scales = received.scales();
  const auto* elements = static_cast<const std::uint8_t*>(rows.data);
  const auto* exponents = static_cast<const std::uint8_t*>(scales.data);
  auto* outputs = static_cast<std::uint16_t*>(received.expert_outputs().data);
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    for (std::int64_t column = 0; column < kHidden; ++column) {
      const int exponent = exponents[scales.element(row, column / epistle::kScaleBlockElements)] - 127;
      const float value = std::ldexp(from_e4m3(elements[row * kHidden + column]), exponent);
      outputs[row * kHidden + column] = to_bf16(value);
    }
  }
}

// What each rank runs. Returns the number of wrong elements among its own tokens.
int run_rank(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks * kExpertsPerRank,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .wire = epistle::Fp8Blocks{.scales = epistle::ScaleFormat::kUe8m0},
                           .apply_weights = false});

  const epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("uniform"), {.num_tokens = kTokens,
                                                                         .num_experts = kRanks * kExpertsPerRank,
                                                                         .top_k = kTopK,
                                                                         .rank = group.rank(),
                                                                         .num_ranks = group.size()});
  std::vector<std::uint16_t> tokens;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    for (std::int64_t column = 0; column < kHidden; ++column) {
      tokens.push_back(to_bf16(element(group.rank(), token, column)));
    }
  }
  const auto rows_of = [](auto& values) {
    return epistle::Rows{.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kBf16};
  };

  // No scales are given: the dispatcher computes them.
  const epistle::Received received = moe.dispatch({.expert_ids = routing.ids(), .tokens = rows_of(tokens)});
  dequantise(received);
  std::vector<std::uint16_t> result(tokens.size());
  moe.combine({.received = received, .out = rows_of(result)});

  int num_wrong = 0;
  for (std::int64_t token = 0; token < kTokens; ++token) {
    const std::int32_t* ids = &routing.expert_ids[static_cast<std::size_t>(token * kTopK)];
    const float num_ranks = ids[0] / kExpertsPerRank == ids[1] / kExpertsPerRank ? 1.0F : 2.0F;
    for (std::int64_t column = 0; column < kHidden; ++column) {
      const float expected = num_ranks * element(group.rank(), token, column);
      const float error = from_bf16(result[static_cast<std::size_t>(token * kHidden + column)]) - expected;
      if (!(std::fabs(error) <= std::fabs(expected) / 16.0F)) ++num_wrong;
    }
  }
  std::printf("rank %d: received %lld rows of fp8, %d elements wrong\n", group.rank(),
              static_cast<long long>(received.num_rows()), num_wrong);
  return num_wrong;
}

}  // namespace

int main() {
  try {
    std::atomic<int> num_wrong{0};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) { num_wrong += run_rank(group); });
    return num_wrong == 0 ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "fp8_wire: %s\n", error.what());
    return 1;
  }
}
