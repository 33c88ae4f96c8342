// A dispatcher's own device memory comes from the caller's allocator, all of it, and goes back there.
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include <gtest/gtest.h>

#include "epistle/dispatcher_info.hpp"
#include "epistle/group.hpp"

#include "support/bad_rank.hpp"
#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

/// Of one rank: cudaMalloc, with books.
class Books {
 public:
  /// `num_given`: allocations that succeed; the one after them does not.
  explicit Books(int num_given = 1 << 20, bool throws = false) : left_(num_given), throws_(throws) {}

  [[nodiscard]] DeviceAllocator allocator() {
    return {.allocate = [this](std::int64_t num_bytes, int device,
                               Stream stream) { return allocate(num_bytes, device, stream); },
            .free = [this](void* memory, std::int64_t num_bytes, int device,
                           Stream stream) { free(memory, num_bytes, device, stream); }};
  }
  [[nodiscard]] std::int64_t held_bytes() const { return held_bytes_; }
  [[nodiscard]] std::int64_t most_bytes() const { return most_bytes_; }
  [[nodiscard]] bool has_failed() const { return left_ < 0; }
  [[nodiscard]] const std::set<std::string>& mistakes() const { return mistakes_; }

 private:
  struct Piece {
    std::int64_t num_bytes;
    int device;
    CUstream_st* stream;
  };

  void* allocate(std::int64_t num_bytes, int device, Stream stream) {
    const std::lock_guard lock(mutex_);
    check_place(device, stream);
    if (--left_ < 0) {
      if (throws_) throw std::bad_alloc();
      return nullptr;
    }
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, static_cast<std::size_t>(num_bytes)), "cudaMalloc");
    // What lies there is not the library's business: it clears what it needs.
    check_cuda(cudaMemsetAsync(memory, 0xa5, static_cast<std::size_t>(num_bytes), stream.get()), "cudaMemsetAsync");
    pieces_[memory] = {num_bytes, device, stream.get()};
    held_bytes_ += num_bytes;
    most_bytes_ = std::max(most_bytes_, held_bytes_);
    return memory;
  }

  void free(void* memory, std::int64_t num_bytes, int device, Stream stream) {
    const std::lock_guard lock(mutex_);
    check_place(device, stream);
    const auto found = pieces_.find(memory);
    if (found == pieces_.end()) {
      mistakes_.insert("gave back what it was not given");
      return;
    }
    const Piece& piece = found->second;
    if (piece.num_bytes != num_bytes || piece.device != device || piece.stream != stream.get()) {
      mistakes_.insert("gave back other values than it was given for");
    }
    held_bytes_ -= piece.num_bytes;
    pieces_.erase(found);
    check_cuda(cudaFree(memory), "cudaFree");
  }

  void check_place(int device, Stream stream) {
    int current = -1;
    if (cudaGetDevice(&current) != cudaSuccess || current != device) mistakes_.insert("another device is current");
    if (stream.get() == nullptr) mistakes_.insert("no stream");
  }

  std::mutex mutex_;
  std::map<void*, Piece> pieces_;
  std::int64_t held_bytes_ = 0;
  std::int64_t most_bytes_ = 0;
  std::set<std::string> mistakes_;
  int left_;
  bool throws_;
};

Scenario allocator_scenario(const std::string& dispatcher) {
  Scenario scenario = small_scenario();
  scenario.config.layout = ExpertBlocks{.rows_per_expert = 40};
  scenario.config.sizing = Capacity{};
  if (dispatcher == "hybrid") scenario.domain_size = 1;
  return scenario;
}

/// Whose rows can be flagged: those that low_latency sends by lines.
bool flags_rows(const std::string& dispatcher) { return dispatcher == "low_latency"; }

class GpuAllocator : public OnGpu<::testing::TestWithParam<const char*>> {};

TEST_P(GpuAllocator, IsAskedForWhatWasForetoldAndGetsItBack) {
  const std::string dispatcher = GetParam();
  const Scenario scenario = allocator_scenario(dispatcher);
  const int num_ranks = scenario.num_ranks();
  const CudaOptions plain{.device = 0, .row_flags = flags_rows(dispatcher)};
  std::int64_t foretold_bytes = 0;
  const MemoryQuery query{.num_ranks = num_ranks, .domain_size = scenario.domain_size, .options = plain};
  const MemoryPlan plan = find_dispatcher(dispatcher, Device::kCuda).memory(scenario.config, query);
  for (const MemorySection& section : plan.sections)
    foretold_bytes += section.from_allocator ? section.largest_bytes : 0;
  std::vector<Books> books(static_cast<std::size_t>(num_ranks));
  std::vector<Mismatch> mismatches(books.size());
  run_thread_ranks(num_ranks,
                   [&](Group& group) {
                     const auto rank = static_cast<std::size_t>(group.rank());
                     CudaOptions options = plain;
                     options.allocator = books[rank].allocator();
                     {
                       Subject subject(group, dispatcher, scenario.config, on_cuda(options));
                       mismatches[rank] = round_trip(subject, Round(scenario, 0));
                       EXPECT_EQ(books[rank].held_bytes(), foretold_bytes) << "rank " << rank;
                     }
                     group.barrier();
                   },
                   {.timeout = kCudaTimeout, .domain_size = scenario.domain_size});
  for (std::size_t rank = 0; rank < books.size(); ++rank) {
    EXPECT_FALSE(mismatches[rank].has_value()) << "rank " << rank << ": " << *mismatches[rank];
    EXPECT_EQ(books[rank].held_bytes(), 0) << "rank " << rank;
    EXPECT_EQ(books[rank].mistakes(), std::set<std::string>{}) << "rank " << rank;
  }
}

TEST_P(GpuAllocator, ThatHasNoMoreIsOutOfMemoryOnAllRanks) {
  const std::string dispatcher = GetParam();
  const Scenario scenario = allocator_scenario(dispatcher);
  const int num_ranks = scenario.num_ranks();
  const CudaOptions plain{.device = 0, .row_flags = flags_rows(dispatcher)};
  bool has_failed = true;
  // Whichever allocation it is that fails, until none does.
  for (int num_given = 0; has_failed && !HasFailure(); ++num_given) {
    std::vector<Books> books(static_cast<std::size_t>(num_ranks));
    Books bad(num_given, num_given % 2 == 1);
    std::vector<Outcome> outcomes(books.size());
    run_thread_ranks(num_ranks,
                     [&](Group& group) {
                       const auto rank = static_cast<std::size_t>(group.rank());
                       CudaOptions options = plain;
                       options.allocator = group.rank() == kBadRank ? bad.allocator() : books[rank].allocator();
                       outcomes[rank] =
                           outcome_of([&] { (void)Dispatcher(group, dispatcher, scenario.config, options); });
                       // The group is not the worse for it.
                       group.barrier();
                     },
                     {.timeout = kCudaTimeout, .domain_size = scenario.domain_size});
    has_failed = bad.has_failed();
    EXPECT_EQ(bad.held_bytes(), 0) << num_given;
    EXPECT_EQ(bad.mistakes(), std::set<std::string>{});
    for (std::size_t rank = 0; rank < books.size(); ++rank) {
      EXPECT_EQ(books[rank].held_bytes(), 0) << num_given;
      EXPECT_EQ(outcomes[rank].has_value(), has_failed) << num_given;
      if (!outcomes[rank].has_value()) continue;
      EXPECT_EQ(outcomes[rank]->code(), ErrorCode::kOutOfMemory) << outcomes[rank]->what();
      EXPECT_NE(std::string(outcomes[rank]->what()).find("CudaOptions::allocator"), std::string::npos)
          << outcomes[rank]->what();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GpuAllocator, ::testing::Values("direct", "low_latency", "auto", "hybrid"),
                         [](const auto& param_info) { return std::string(param_info.param); });

class GpuAllocatorOfOneRank : public OnGpu<> {
 protected:
  static Outcome outcome_with(const DeviceAllocator& allocator) {
    Outcome outcome;
    run_thread_ranks(1, [&](Group& group) {
      DispatcherConfig config = small_scenario().config;
      const CudaOptions options{.device = 0, .allocator = allocator};
      outcome = outcome_of([&] { (void)Dispatcher(group, "direct", config, options); });
    });
    return outcome;
  }
};

TEST_F(GpuAllocatorOfOneRank, MemoryOfTheHostIsRefusedAndGivenBack) {
  int num_held = 0;
  const DeviceAllocator host{.allocate =
                                 [&](std::int64_t num_bytes, int, Stream) {
                                   ++num_held;
                                   return ::operator new(static_cast<std::size_t>(num_bytes), std::align_val_t(256));
                                 },
                             .free =
                                 [&](void* memory, std::int64_t, int, Stream) {
                                   --num_held;
                                   ::operator delete(memory, std::align_val_t(256));
                                 }};
  const Outcome outcome = outcome_with(host);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument) << outcome->what();
  EXPECT_EQ(num_held, 0);
}

TEST_F(GpuAllocatorOfOneRank, MemoryAtAnOddPlaceIsRefusedAndGivenBack) {
  int num_held = 0;
  const DeviceAllocator odd{.allocate = [&](std::int64_t num_bytes, int, Stream) -> void* {
                              void* memory = nullptr;
                              check_cuda(cudaMalloc(&memory, static_cast<std::size_t>(num_bytes) + 16), "cudaMalloc");
                              ++num_held;
                              return static_cast<std::byte*>(memory) + 16;
                            },
                            .free =
                                [&](void* memory, std::int64_t, int, Stream) {
                                  --num_held;
                                  check_cuda(cudaFree(static_cast<std::byte*>(memory) - 16), "cudaFree");
                                }};
  const Outcome outcome = outcome_with(odd);
  ASSERT_TRUE(outcome.has_value());
  EXPECT_EQ(outcome->code(), ErrorCode::kInvalidArgument) << outcome->what();
  EXPECT_EQ(num_held, 0);
}

// Memory of CUDA's own pools is there when the stream gets to it, and goes in its order.
TEST_F(GpuAllocatorOfOneRank, MayOrderMemoryByTheStreamThatItIsGiven) {
  cudaMemPool_t pool = nullptr;
  check_cuda(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
  const DeviceAllocator ordered{
      .allocate = [](std::int64_t num_bytes, int, Stream stream) -> void* {
        void* memory = nullptr;
        check_cuda(cudaMallocAsync(&memory, static_cast<std::size_t>(num_bytes), stream.get()), "cudaMallocAsync");
        return memory;
      },
      .free = [](void* memory, std::int64_t, int,
                 Stream stream) { check_cuda(cudaFreeAsync(memory, stream.get()), "cudaFreeAsync"); }};
  Scenario scenario = small_scenario();
  scenario.tokens_per_rank = {12};
  for (int round = 0; round < 3; ++round) {
    expect_play("direct", scenario, on_cuda(CudaOptions{.device = 0, .allocator = ordered}));
  }
  check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  std::uint64_t used_bytes = 1;
  check_cuda(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used_bytes), "cudaMemPoolGetAttribute");
  EXPECT_EQ(used_bytes, 0U);
}

}  // namespace
}  // namespace epistle::testing
