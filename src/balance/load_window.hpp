// Tokens of every expert of late: what plans and quotas are made from.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace epistle::balance {

enum class WindowKind : std::int32_t {
  kTime,     ///< the last `span`, in buckets
  kSteps,    ///< the last `span_steps`, in buckets
  kDecayed,  ///< all there ever was, by half after every `half_life`
};

/// Prefill and decode load experts differently, and plans are made for one or the other.
enum class WorkPhase : std::int32_t { kPrefill, kDecode };
inline constexpr std::size_t kNumPhases = 2;

struct WindowOptions {
  std::int32_t num_layers = 1;
  std::int32_t num_experts = 0;
  WindowKind kind = WindowKind::kTime;
  std::chrono::milliseconds span = std::chrono::minutes(5);
  std::int64_t span_steps = 1000;
  std::int32_t num_buckets = 30;  ///< a window of time or steps loses this part of itself at once
  std::chrono::milliseconds half_life = std::chrono::minutes(2);
};

/// Loads at one moment. Plain data: what ranks exchange and add up.
struct LoadSnapshot {
  std::int32_t num_layers = 0;
  std::int32_t num_experts = 0;
  std::vector<double> loads;               ///< [num_layers, num_experts]; of the window
  std::vector<std::int64_t> tokens_total;  ///< [num_layers, num_experts]; since the beginning

  [[nodiscard]] std::span<const double> loads_of(std::int32_t layer) const;
  [[nodiscard]] std::span<const std::int64_t> tokens_of(std::int32_t layer) const;

  /// Adds another rank's. Throws kShapeMismatch where layers or experts differ.
  void merge(const LoadSnapshot& other);
};

/// All members may be called by several threads at once.
class LoadWindow {
 public:
  using Clock = std::chrono::steady_clock;

  /// Throws kInvalidArgument for options without sense.
  explicit LoadWindow(const WindowOptions& options);

  /// Counts tokens of a layer, [num_experts]. Time never runs back: an earlier `now` counts as the latest one seen.
  void add(std::int32_t layer, WorkPhase phase, std::span<const std::int64_t> tokens_per_expert,
           Clock::time_point now = Clock::now());
  /// For kSteps: what is added from now on belongs to the next step.
  void end_step(WorkPhase phase);

  [[nodiscard]] LoadSnapshot snapshot(WorkPhase phase, Clock::time_point now = Clock::now()) const;
  /// A layer's buckets that have any load, the oldest first, as PlanRequest::windows takes them.
  [[nodiscard]] std::vector<std::vector<double>> samples(std::int32_t layer, WorkPhase phase,
                                                         Clock::time_point now = Clock::now()) const;

 private:
  struct Bucket {
    std::int64_t number = -1;  // which stretch of time or steps it holds
    std::vector<double> loads;
  };
  struct PhaseLoads {
    std::vector<Bucket> buckets;
    std::vector<std::int64_t> tokens_total;
    std::int64_t num_steps = 0;
    Clock::time_point latest;  // kDecayed: what the loads are decayed to
  };

  [[nodiscard]] std::int64_t bucket_number(const PhaseLoads& loads, Clock::time_point now) const;
  [[nodiscard]] double decay(Clock::duration passed) const;
  [[nodiscard]] bool is_in_window(const Bucket& bucket, std::int64_t number) const;
  [[nodiscard]] std::size_t index(std::int32_t layer, std::int32_t expert) const noexcept;
  void check_layer(std::int32_t layer) const;

  WindowOptions options_;
  Clock::time_point start_ = Clock::now();
  mutable std::mutex mutex_;  ///< guards what follows
  std::array<PhaseLoads, kNumPhases> phases_;
};

}  // namespace epistle::balance
