// Uses the installed library as a stranger would: dispatch and combine between two threads.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <epistle/dispatcher.hpp>
#include <epistle/group.hpp>
#include <epistle/version.hpp>

namespace {

constexpr int kRanks = 2;
constexpr std::int64_t kTokens = 4;
constexpr std::int64_t kHidden = 4;

// Each token goes to expert 0 on rank 0 and to expert 1 on rank 1, so it comes back doubled.
bool round_trip(epistle::Group& group) {
  epistle::DispatcherConfig config;
  config.hidden = kHidden;
  config.dtype = epistle::DType::kFp32;
  config.num_experts = kRanks;
  config.top_k = kRanks;
  config.max_tokens = kTokens;
  config.apply_weights = false;
  const auto dispatcher = epistle::make_dispatcher("direct", group, config);

  const std::vector<std::int32_t> expert_ids = {0, 1, 1, 0, 0, 1, 1, 0};
  std::vector<float> tokens;
  for (std::int64_t i = 0; i < kTokens * kHidden; ++i) tokens.push_back(static_cast<float>(group.rank() * 100 + i));

  const epistle::Handle handle =
      dispatcher->prepare({.expert_ids = expert_ids.data(), .num_tokens = kTokens, .top_k = kRanks});
  const epistle::DispatchOutput& received =
      dispatcher->dispatch(handle, {.rows = tokens.data(), .num_tokens = kTokens});
  std::vector<float> result(tokens.size());
  dispatcher->combine(handle, received.rows, result.data(), static_cast<std::int64_t>(result.size() * sizeof(float)));

  bool correct = received.num_rows == kRanks * kTokens;
  for (std::size_t i = 0; i < tokens.size(); ++i) correct = correct && result[i] == 2.0F * tokens[i];
  return correct;
}

}  // namespace

int main() {
  std::atomic<int> num_wrong{0};
  epistle::run_thread_ranks(kRanks, [&](epistle::Group& group) {
    if (!round_trip(group)) ++num_wrong;
  });
  std::printf("epistle %s: %s\n", EPISTLE_VERSION, num_wrong == 0 ? "ok" : "wrong result");
  return num_wrong == 0 ? 0 : 1;
}
