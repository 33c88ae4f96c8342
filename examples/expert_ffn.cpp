// A mixture-of-experts layer: y[t] = sum over the token's experts e of w[t,e] * W2[e] relu(W1[e] x[t]).
//
// Four ranks hold two experts each. dispatch delivers the rows grouped by expert, each group padded to four rows, so
// that an expert's input is one dense block, as a grouped GEMM wants it. The layer's result is compared with the same
// formula computed on the source rank without any communication. Inputs and matrices are small integers and weights
// are powers of two: every product and sum is exact in fp32, so the two results must have the same bits.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <span>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr std::int32_t kExperts = 8;
constexpr std::int32_t kTopK = 3;
constexpr std::size_t kTokens = 24;
constexpr std::size_t kHidden = 16;
constexpr std::size_t kFfn = 32;
constexpr std::int32_t kAlignment = 4;  // rows

// Integers from -2 to 2 without a short period.
float small_integer(std::size_t seed) { return static_cast<float>((seed * 2654435761U >> 7U) % 5U) - 2.0F; }

struct Expert {
  std::vector<float> up;    // W1 [kFfn, kHidden]
  std::vector<float> down;  // W2 [kHidden, kFfn]

  explicit Expert(std::int32_t expert) {
    const std::size_t base = static_cast<std::size_t>(expert) * 10000;
    for (std::size_t i = 0; i < kFfn * kHidden; ++i) {
      up.push_back(small_integer(base + i));
      down.push_back(small_integer(base + 5000 + i));
    }
  }

  void apply(std::span<const float> input, std::span<float> output) const {
    std::vector<float> inner(kFfn);
    for (std::size_t i = 0; i < kFfn; ++i) {
      float sum = 0.0F;
      for (std::size_t j = 0; j < kHidden; ++j) sum += up[i * kHidden + j] * input[j];
      inner[i] = sum > 0.0F ? sum : 0.0F;
    }
    for (std::size_t i = 0; i < kHidden; ++i) {
      float sum = 0.0F;
      for (std::size_t j = 0; j < kFfn; ++j) sum += down[i * kFfn + j] * inner[j];
      output[i] = sum;
    }
  }
};

// The layer without communication: every expert at hand.
std::vector<float> dense_layer(const std::vector<float>& tokens, const epistle::RoutingTable& routing) {
  std::vector<float> result(tokens.size(), 0.0F);
  std::vector<float> expert_row(kHidden);
  for (std::size_t token = 0; token < kTokens; ++token) {
    for (std::size_t k = 0; k < kTopK; ++k) {
      const Expert expert(routing.expert_ids[token * kTopK + k]);
      expert.apply(std::span(tokens).subspan(token * kHidden, kHidden), expert_row);
      for (std::size_t i = 0; i < kHidden; ++i) {
        result[token * kHidden + i] += routing.weights[token * kTopK + k] * expert_row[i];
      }
    }
  }
  return result;
}

// This rank's experts over the rows it received; the outputs go where combine reads them, so nothing is copied.
void apply_local_experts(const epistle::Received& received) {
  const auto num_elements = static_cast<std::size_t>(received.num_rows()) * kHidden;
  const std::span inputs(static_cast<const float*>(received.rows().data), num_elements);
  const std::span outputs(static_cast<float*>(received.expert_outputs().data), num_elements);
  const epistle::RowDescription& rows = received.description();
  for (std::int32_t local_expert = 0; local_expert < rows.num_local_experts; ++local_expert) {
    const Expert expert(rows.first_expert + local_expert);
    const auto begin = static_cast<std::size_t>(rows.expert_begin[local_expert]);
    const auto end = begin + static_cast<std::size_t>(rows.expert_counts[local_expert]);
    for (std::size_t row = begin; row < end; ++row) {
      expert.apply(inputs.subspan(row * kHidden, kHidden), outputs.subspan(row * kHidden, kHidden));
    }
  }
}

bool run_rank(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kExperts,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::ExpertMajor{.alignment = kAlignment}});

  epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("zipf:0.8"), {.num_tokens = kTokens,
                                                                          .num_experts = kExperts,
                                                                          .top_k = kTopK,
                                                                          .rank = group.rank(),
                                                                          .num_ranks = group.size()});
  constexpr float kWeights[kTopK] = {0.5F, 0.25F, 0.25F};
  for (std::size_t i = 0; i < routing.weights.size(); ++i) routing.weights[i] = kWeights[i % kTopK];

  std::vector<float> tokens(kTokens * kHidden);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = small_integer(static_cast<std::size_t>(group.rank()) * 1000 + i);
  }

  const auto rows_of = [](std::vector<float>& values) {
    return epistle::Rows{.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
  };

  // The routing is prepared in the same call.
  const epistle::Received received =
      moe.dispatch({.expert_ids = routing.ids(), .weights = routing.probs(), .tokens = rows_of(tokens)});
  apply_local_experts(received);
  std::vector<float> result(tokens.size());
  moe.combine({.received = received, .out = rows_of(result)});

  const std::vector<float> expected = dense_layer(tokens, routing);
  const bool same_bits = std::memcmp(result.data(), expected.data(), result.size() * sizeof(float)) == 0;
  std::printf("rank %d: %lld rows with %lld of padding, result %s the dense layer\n", group.rank(),
              static_cast<long long>(received.num_rows()),
              static_cast<long long>(received.handle().wait_stats().padding_rows),
              same_bits ? "equals" : "DIFFERS from");
  return same_bits;
}

}  // namespace

int main() {
  try {
    std::atomic<bool> all_same{true};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
      if (!run_rank(group)) all_same = false;
    });
    return all_same ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "expert_ffn: %s\n", error.what());
    return 1;
  }
}
