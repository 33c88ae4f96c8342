// The forward and the backward pass of a mixture-of-experts layer between four ranks.
//
//   y[t] = sum over the token's experts e of w[t,e] * s[e] * x[t]
//
// An expert multiplies by its one parameter s[e]. Given the gradients of y, the backward pass yields those of x, of the
// routing weights w and of s; all are compared with the formulas, computed on the source rank without communication.
// Values are small integers and powers of two: every product and sum is exact in fp32, so the bits must be the same.

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr std::int32_t kExperts = 8;
constexpr std::int32_t kTopK = 2;
constexpr std::size_t kTokens = 24;
constexpr std::size_t kHidden = 16;
constexpr std::array<float, kTopK> kWeights = {0.5F, 0.25F};

float parameter_of(std::int32_t expert) { return static_cast<float>(1 + expert); }

// Integers from -2 to 2 without a short period.
std::vector<float> small_integers(std::size_t count, std::size_t seed) {
  std::vector<float> values;
  for (std::size_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(((seed + i) * 2654435761U >> 7U) % 5U) - 2.0F);
  }
  return values;
}

float dot(const float* a, const float* b) {
  float sum = 0.0F;
  for (std::size_t i = 0; i < kHidden; ++i) sum += a[i] * b[i];
  return sum;
}

epistle::Rows rows_of(std::vector<float>& values) {
  return {.data = values.data(),
          .num_rows = static_cast<std::int64_t>(values.size() / kHidden),
          .hidden = kHidden,
          .dtype = epistle::DType::kFp32};
}

// out[row] = s[expert of the row] * in[row] for the rows of this rank's experts.
void multiply_by_parameters(const epistle::RowDescription& rows, const void* in, void* out) {
  const auto* source = static_cast<const float*>(in);
  auto* target = static_cast<float*>(out);
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    if (rows.row_expert[row] < 0) continue;  // padding
    const float parameter = parameter_of(rows.first_expert + rows.row_expert[row]);
    for (std::size_t i = 0; i < kHidden; ++i) {
      const std::size_t element = static_cast<std::size_t>(row) * kHidden + i;
      target[element] = parameter * source[element];
    }
  }
}

// What the step gives on one rank.
struct Step {
  std::vector<float> y = std::vector<float>(kTokens * kHidden);
  std::vector<float> grad_x = std::vector<float>(kTokens * kHidden);
  std::vector<float> grad_w = std::vector<float>(kTokens * kTopK);
  std::vector<float> grad_s;  // of this rank's experts
};

Step train(epistle::Group& group, const epistle::RoutingTable& routing, std::vector<float>& x,
           std::vector<float>& grad_y) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kExperts,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::ExpertMajor{.alignment = 4},
                           .num_buffers = 2});  // the rows of the forward pass stay while gradients arrive
  Step step;

  // Forward.
  const epistle::Handle handle = moe.prepare({.expert_ids = routing.ids(), .weights = routing.probs()});
  const epistle::Received in = moe.dispatch({.handle = handle, .tokens = rows_of(x)});
  const epistle::RowDescription& rows = in.description();
  multiply_by_parameters(rows, in.rows().data, in.expert_outputs().data);
  moe.combine({.handle = handle, .rows = in.expert_outputs(), .out = rows_of(step.y)});

  // Backward: the gradients of y go to the experts' outputs, those of the experts' inputs back to the tokens.
  std::vector<float> row_grad_w(static_cast<std::size_t>(rows.num_rows));
  const epistle::Received grad_out = moe.combine_backward({.handle = handle,
                                                           .grad_out = rows_of(grad_y),
                                                           .saved_rows = in.expert_outputs(),
                                                           .grad_weights = row_grad_w.data()});
  step.grad_s.resize(static_cast<std::size_t>(rows.num_local_experts));
  const auto* inputs = static_cast<const float*>(in.rows().data);
  const auto* gradients = static_cast<const float*>(grad_out.rows().data);
  for (std::int64_t row = 0; row < rows.num_rows; ++row) {
    if (rows.row_expert[row] < 0) continue;
    const std::size_t first = static_cast<std::size_t>(row) * kHidden;
    step.grad_s[static_cast<std::size_t>(rows.row_expert[row])] += dot(inputs + first, gradients + first);
  }
  std::vector<float> grad_in(static_cast<std::size_t>(rows.num_rows) * kHidden);
  multiply_by_parameters(rows, gradients, grad_in.data());
  moe.dispatch_backward({.handle = handle,
                         .grad_rows = rows_of(grad_in),
                         .grad_weights = row_grad_w.data(),
                         .grad_tokens = rows_of(step.grad_x),
                         .grad_probs = step.grad_w.data()});
  return step;
}

// This rank's share of the same formulas, every expert at hand. `grad_s` is of all experts, of this rank's tokens only.
Step dense_step(const epistle::RoutingTable& routing, const std::vector<float>& x, const std::vector<float>& grad_y) {
  Step step;
  step.grad_s.resize(kExperts);
  for (std::size_t token = 0; token < kTokens; ++token) {
    const float product = dot(&x[token * kHidden], &grad_y[token * kHidden]);
    for (std::size_t k = 0; k < kTopK; ++k) {
      const std::int32_t expert = routing.expert_ids[token * kTopK + k];
      const float weight = routing.weights[token * kTopK + k];
      step.grad_w[token * kTopK + k] = parameter_of(expert) * product;
      step.grad_s[static_cast<std::size_t>(expert)] += weight * product;
      for (std::size_t i = token * kHidden; i < (token + 1) * kHidden; ++i) {
        step.y[i] += weight * parameter_of(expert) * x[i];
        step.grad_x[i] += weight * parameter_of(expert) * grad_y[i];
      }
    }
  }
  return step;
}

bool run_rank(epistle::Group& group) {
  const auto rank = static_cast<std::size_t>(group.rank());
  epistle::RoutingTable routing =
      epistle::generate_routing(epistle::RoutingSpec::parse("zipf:0.8"), {.num_tokens = kTokens,
                                                                          .num_experts = kExperts,
                                                                          .top_k = kTopK,
                                                                          .rank = group.rank(),
                                                                          .num_ranks = group.size()});
  for (std::size_t i = 0; i < routing.weights.size(); ++i) routing.weights[i] = kWeights[i % kTopK];
  std::vector<float> x = small_integers(kTokens * kHidden, 1000 * rank);
  std::vector<float> grad_y = small_integers(kTokens * kHidden, 1000 * rank + 500'000);

  const Step step = train(group, routing, x, grad_y);
  const Step expected = dense_step(routing, x, grad_y);

  // The gradient of a parameter is summed over the tokens of all ranks.
  std::vector<float> shares(kRanks * kExperts);
  group.all_gather(expected.grad_s.data(), kExperts * sizeof(float), shares.data());
  bool same_bits = step.y == expected.y && step.grad_x == expected.grad_x && step.grad_w == expected.grad_w;
  for (std::size_t local_expert = 0; local_expert < step.grad_s.size(); ++local_expert) {
    const std::size_t expert = rank * (kExperts / kRanks) + local_expert;
    float sum = 0.0F;
    for (std::size_t peer = 0; peer < kRanks; ++peer) sum += shares[peer * kExperts + expert];
    same_bits = same_bits && step.grad_s[local_expert] == sum;
  }
  std::printf("rank %d: the step %s the dense layer\n", group.rank(), same_bits ? "equals" : "DIFFERS from");
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
    std::fprintf(stderr, "training_step: %s\n", error.what());
    return 1;
  }
}
