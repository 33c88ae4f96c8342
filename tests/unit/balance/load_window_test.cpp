#include "balance/load_window.hpp"

#include <thread>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "balance/metrics.hpp"
#include "support/subprocess.hpp"
#include "support/temp_dir.hpp"
#include "support/trace_files.hpp"

namespace epistle::balance {
namespace {

using std::chrono::milliseconds;
using Tokens = std::vector<std::int64_t>;

constexpr WorkPhase kDecode = WorkPhase::kDecode;

std::vector<double> loads_at(const LoadWindow& window, LoadWindow::Clock::time_point now, std::int32_t layer = 0) {
  const LoadSnapshot snapshot = window.snapshot(kDecode, now);
  return {snapshot.loads_of(layer).begin(), snapshot.loads_of(layer).end()};
}

TEST(LoadWindow, ForgetsByTime) {
  LoadWindow window({.num_layers = 2, .num_experts = 2, .span = milliseconds(1000), .num_buckets = 10});
  const auto start = LoadWindow::Clock::now() + milliseconds(1);
  window.add(0, kDecode, Tokens{1, 2}, start);
  window.add(0, kDecode, Tokens{10, 20}, start + milliseconds(500));
  window.add(1, kDecode, Tokens{7, 7}, start + milliseconds(500));
  EXPECT_EQ(loads_at(window, start + milliseconds(800)), (std::vector<double>{11, 22}));
  EXPECT_EQ(loads_at(window, start + milliseconds(1200)), (std::vector<double>{10, 20}));
  EXPECT_EQ(loads_at(window, start + milliseconds(1200), 1), (std::vector<double>{7, 7}));
  EXPECT_EQ(loads_at(window, start + milliseconds(5000)), (std::vector<double>{0, 0}));
  const LoadSnapshot snapshot = window.snapshot(kDecode, start + milliseconds(5000));
  EXPECT_EQ(Tokens(snapshot.tokens_of(0).begin(), snapshot.tokens_of(0).end()), (Tokens{11, 22}));
  // A bucket is used again for a later stretch of time.
  window.add(0, kDecode, Tokens{3, 3}, start + milliseconds(2000));
  EXPECT_EQ(loads_at(window, start + milliseconds(2000)), (std::vector<double>{3, 3}));
}

TEST(LoadWindow, ForgetsBySteps) {
  LoadWindow window({.num_experts = 1, .kind = WindowKind::kSteps, .span_steps = 4, .num_buckets = 4});
  for (int step = 0; step < 10; ++step) {
    window.add(0, kDecode, Tokens{step});
    if (step < 9) window.end_step(kDecode);
  }
  const auto now = LoadWindow::Clock::now();
  EXPECT_EQ(loads_at(window, now), (std::vector<double>{6 + 7 + 8 + 9}));
  EXPECT_EQ(window.samples(0, kDecode, now), (std::vector<std::vector<double>>{{6}, {7}, {8}, {9}}));
}

TEST(LoadWindow, DecaysByHalf) {
  LoadWindow window({.num_experts = 1, .kind = WindowKind::kDecayed, .half_life = milliseconds(100)});
  const auto start = LoadWindow::Clock::now() + milliseconds(1);
  window.add(0, kDecode, Tokens{8}, start);
  window.add(0, kDecode, Tokens{2}, start + milliseconds(100));
  EXPECT_NEAR(loads_at(window, start + milliseconds(100))[0], 6.0, 1e-9);
  EXPECT_NEAR(loads_at(window, start + milliseconds(300))[0], 1.5, 1e-9);
}

TEST(LoadWindow, KeepsPhasesApart) {
  LoadWindow window({.num_experts = 1});
  window.add(0, WorkPhase::kPrefill, Tokens{5});
  EXPECT_EQ(loads_at(window, LoadWindow::Clock::now()), (std::vector<double>{0}));
  EXPECT_EQ(window.snapshot(WorkPhase::kPrefill).loads, (std::vector<double>{5}));
}

TEST(LoadWindow, TakesThreadsAtOnce) {
  LoadWindow window({.num_experts = 3});
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int call = 0; call < 500; ++call) {
        window.add(0, kDecode, Tokens{1, 2, 3});
        if (call % 100 == 0) (void)window.snapshot(kDecode);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(window.snapshot(kDecode).tokens_total, (Tokens{2000, 4000, 6000}));
}

TEST(LoadWindow, SnapshotsOfRanksAddUp) {
  LoadWindow window({.num_experts = 2});
  window.add(0, kDecode, Tokens{1, 2});
  LoadSnapshot sum = window.snapshot(kDecode);
  sum.merge(window.snapshot(kDecode));
  EXPECT_EQ(sum.loads, (std::vector<double>{2, 4}));
  EXPECT_EQ(sum.tokens_total, (Tokens{2, 4}));
  LoadWindow other({.num_experts = 3});
  test::expect_error(ErrorCode::kShapeMismatch, {"1 layers with 3 experts, expected 1 with 2"},
                     [&] { sum.merge(other.snapshot(kDecode)); });
}

TEST(LoadWindow, RefusesWhatMakesNoSense) {
  const auto refuse = [](const WindowOptions& options) { EXPECT_THROW(LoadWindow window(options), Error); };
  refuse({.num_experts = 0});
  refuse({.num_experts = 1, .num_buckets = 0});
  refuse({.num_experts = 1, .span = milliseconds(3), .num_buckets = 10});
  LoadWindow window({.num_experts = 2});
  EXPECT_THROW(window.add(1, kDecode, Tokens{1, 2}), Error);
  EXPECT_THROW(window.add(0, kDecode, Tokens{1}), Error);
}

TEST(Metrics, ArePrometheusText) {
  LoadWindow window({.num_experts = 2});
  window.add(0, kDecode, Tokens{5, 6});
  const std::string text =
      metrics_text(window.snapshot(kDecode), {{.balancedness = 0.5, .num_replicas = {1, 2}, .num_moves = 3}});
  for (const char* const line :
       {"# TYPE epistle_expert_tokens_total counter\n", "epistle_expert_tokens_total{layer=\"0\",expert=\"1\"} 6\n",
        "epistle_balancedness{layer=\"0\"} 0.5\n", "epistle_expert_replicas{layer=\"0\",expert=\"1\"} 2\n",
        "epistle_expert_moves_total{layer=\"0\"} 3\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << text;
  }
  const test::TempDir dir;
  write_metrics(dir.file("epistle.prom"), text);
  EXPECT_EQ(test::read_file(dir.file("epistle.prom")), text);
  test::expect_error(ErrorCode::kSystem, {"cannot write the metrics"},
                     [&] { write_metrics(dir.file("absent/epistle.prom"), text); });
}

}  // namespace
}  // namespace epistle::balance
