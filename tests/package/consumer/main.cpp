// Uses the installed library as a stranger would: dispatch and combine between two threads.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <epistle/dispatcher.hpp>
#include <epistle/version.hpp>

namespace {

constexpr int kRanks = 2;
constexpr std::int64_t kTokens = 4;
constexpr std::int64_t kHidden = 4;

// Each token goes to expert 0 on rank 0 and to expert 1 on rank 1, so it comes back doubled.
bool round_trip(epistle::Group& group) {
  epistle::Dispatcher moe(group, "direct",
                          {.hidden = kHidden,
                           .num_experts = kRanks,
                           .top_k = kRanks,
                           .max_tokens = kTokens,
                           .input = epistle::DType::kFp32,
                           .apply_weights = false});

  const std::vector<std::int32_t> expert_ids = {0, 1, 1, 0, 0, 1, 1, 0};
  std::vector<float> tokens;
  for (std::int64_t i = 0; i < kTokens * kHidden; ++i) tokens.push_back(static_cast<float>(group.rank() * 100 + i));

  const auto rows_of = [](std::vector<float>& values) {
    return epistle::Rows{.data = values.data(), .num_rows = kTokens, .hidden = kHidden, .dtype = epistle::DType::kFp32};
  };

  const epistle::Received received =
      moe.dispatch({.expert_ids = {expert_ids.data(), kTokens, kRanks}, .tokens = rows_of(tokens)});
  std::vector<float> result(tokens.size());
  moe.combine({.received = received, .rows = received.rows(), .out = rows_of(result)});

  bool correct = received.num_rows() == kRanks * kTokens;
  for (std::size_t i = 0; i < tokens.size(); ++i) correct = correct && result[i] == 2.0F * tokens[i];
  return correct;
}

}  // namespace

int main() {
  std::atomic<int> num_wrong{0};
  epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
    if (!round_trip(group)) ++num_wrong;
  });
  std::printf("epistle %s: %s\n", EPISTLE_VERSION_STRING, num_wrong == 0 ? "ok" : "wrong result");
  return num_wrong == 0 && epistle::library_version() == EPISTLE_VERSION ? 0 : 1;
}
