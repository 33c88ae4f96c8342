// Two micro-batches that hide each other's communication: while the rows of one are on their way, the other computes.
//
// A send half returns as soon as this rank's rows are on their way; a receive half waits for those of the others. With
// two buffers the rows of both micro-batches are there at once, each held by its own lease. Experts are the identity
// and the weights of a token sum to 1, so every token must come back as it left.

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

namespace {

constexpr int kRanks = 4;
constexpr int kMicroBatches = 2;
constexpr std::int32_t kExperts = 8;
constexpr std::int32_t kTopK = 2;
constexpr std::int64_t kTokens = 32;
constexpr std::int64_t kHidden = 16;

// What a rank computes with.
struct MicroBatch {
  epistle::RoutingTable routing;
  std::vector<float> tokens;
  std::vector<float> result = std::vector<float>(static_cast<std::size_t>(kTokens * kHidden));

  explicit MicroBatch(int rank, int batch) {
    routing = epistle::generate_routing(epistle::RoutingSpec::parse("uniform"),
                                        {.num_tokens = kTokens,
                                         .num_experts = kExperts,
                                         .top_k = kTopK,
                                         .rank = rank,
                                         .num_ranks = kRanks,
                                         .seed = static_cast<std::uint64_t>(1 + batch)});
    routing.weights.assign(routing.weights.size(), 1.0F / kTopK);
    for (std::int64_t i = 0; i < kTokens * kHidden; ++i) {
      tokens.push_back(static_cast<float>(rank * 10'000 + batch * 1'000'000 + i));
    }
  }
};

epistle::Rows rows_of(std::vector<float>& values) {
  return {.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
}

epistle::DispatchRequest request_of(MicroBatch& batch) {
  return {.expert_ids = batch.routing.ids(), .weights = batch.routing.probs(), .tokens = rows_of(batch.tokens)};
}

// In place of the rest of the layer.
void attention(const MicroBatch& /*batch*/) {}

void run_experts(const epistle::Received& received) {
  const auto* inputs = static_cast<const float*>(received.rows().data);
  auto* outputs = static_cast<float*>(received.expert_outputs().data);
  for (std::int64_t i = 0; i < received.num_rows() * kHidden; ++i) outputs[i] = inputs[i];
}

bool run_rank(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kExperts,
                           .top_k = kTopK,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .layout = epistle::ExpertMajor{},
                           .num_buffers = kMicroBatches});
  MicroBatch first(group.rank(), 0);
  MicroBatch second(group.rank(), 1);

  epistle::Pending on_their_way = moe.dispatch_send(request_of(first));
  attention(second);
  const epistle::Received first_rows = moe.dispatch_receive(std::move(on_their_way));

  on_their_way = moe.dispatch_send(request_of(second));
  run_experts(first_rows);
  const epistle::Received second_rows = moe.dispatch_receive(std::move(on_their_way));

  epistle::Pending sums = moe.combine_send({.received = first_rows, .out = rows_of(first.result)});
  run_experts(second_rows);
  moe.combine_receive(std::move(sums));
  moe.combine({.received = second_rows, .out = rows_of(second.result)});

  const bool unchanged = first.result == first.tokens && second.result == second.tokens;
  std::printf("rank %d: received %lld and %lld rows, tokens came back %s\n", group.rank(),
              static_cast<long long>(first_rows.num_rows()), static_cast<long long>(second_rows.num_rows()),
              unchanged ? "unchanged" : "CHANGED");
  return unchanged;
}

}  // namespace

int main() {
  try {
    std::atomic<bool> all_unchanged{true};
    epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
      if (!run_rank(group)) all_unchanged = false;
    });
    return all_unchanged ? 0 : 1;
  } catch (const epistle::Error& error) {
    std::fprintf(stderr, "micro_batches: %s\n", error.what());
    return 1;
  }
}
