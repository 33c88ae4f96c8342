// How a communicator is made, used and given up, with functions in place of NCCL's.
#include <gtest/gtest.h>

#if EPISTLE_HAS_NCCL

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "gpu/nccl/communicator.hpp"

namespace epistle::nccl {
namespace {

using std::chrono::milliseconds;

/// What the functions do, and what they were asked for.
struct Script {
  std::atomic<int> polls_until_ready{0};  ///< negative: never
  std::atomic<ncclResult_t> state{ncclSuccess};
  std::atomic<ncclResult_t> unique_id{ncclSuccess};
  std::atomic<int> num_made{0};
  std::atomic<int> num_aborted{0};
  std::atomic<int> num_destroyed{0};
  std::atomic<int> num_sends{0};
  std::atomic<int> num_receives{0};
  std::atomic<int> blocking{-1};
};
Script* script = nullptr;

thread_local int polls = 0;

ncclResult_t get_unique_id(ncclUniqueId* id) {
  *id = {};
  return script->unique_id;
}
ncclResult_t comm_init(ncclComm_t* comm, int, ncclUniqueId, int, ncclConfig_t* config) {
  static char object;
  *comm = reinterpret_cast<ncclComm_t>(&object);
  ++script->num_made;
  script->blocking = config->blocking;
  polls = 0;
  return ncclInProgress;
}
ncclResult_t comm_finalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t comm_destroy(ncclComm_t) {
  ++script->num_destroyed;
  return ncclSuccess;
}
ncclResult_t comm_abort(ncclComm_t) {
  ++script->num_aborted;
  return ncclSuccess;
}
ncclResult_t get_async_error(ncclComm_t, ncclResult_t* state) {
  const int needed = script->polls_until_ready;
  *state = needed < 0 || polls++ < needed ? ncclInProgress : script->state.load();
  return ncclSuccess;
}
ncclResult_t group_start() { return ncclSuccess; }
ncclResult_t group_end() {
  polls = 0;
  return ncclInProgress;
}
ncclResult_t send(const void*, std::size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
  ++script->num_sends;
  return ncclSuccess;
}
ncclResult_t receive(void*, std::size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t) {
  ++script->num_receives;
  return ncclSuccess;
}
const char* error_string(ncclResult_t) { return "what the code means"; }
const char* last_error(ncclComm_t) { return "what went wrong"; }

NcclApi fake_api() {
  NcclApi api;
  api.get_unique_id = get_unique_id;
  api.comm_init_rank_config = comm_init;
  api.comm_finalize = comm_finalize;
  api.comm_destroy = comm_destroy;
  api.comm_abort = comm_abort;
  api.comm_get_async_error = get_async_error;
  api.group_start = group_start;
  api.group_end = group_end;
  api.send = send;
  api.receive = receive;
  api.error_string = error_string;
  api.last_error = last_error;
  return api;
}

class NcclCommunicator : public ::testing::Test {
 protected:
  static constexpr int kNumRanks = 2;

  NcclCommunicator() { script = &script_; }

  /// The errors of the ranks; a rank that returns early has left the group.
  std::vector<std::optional<Error>> run(const std::function<void(Group&)>& body, milliseconds timeout) {
    std::vector<std::optional<Error>> errors(kNumRanks);
    try {
      run_thread_ranks(kNumRanks,
                       [&](Group& group) {
                         try {
                           body(group);
                         } catch (const Error& error) {
                           errors[static_cast<std::size_t>(group.rank())] = error;
                         }
                       },
                       {.timeout = timeout});
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
    }
    return errors;
  }

  /// Makes a communicator, which is expected to throw. Neither rank is lost before the other has given up.
  void fail_to_make(Group& group) const {
    try {
      Communicator communicator(api_, group.impl());
    } catch (const Error&) {
      std::this_thread::sleep_for(milliseconds(200));
      throw;
    }
  }

  Script script_;
  NcclApi api_ = fake_api();
};

TEST_F(NcclCommunicator, IsMadeUsedAndEnded) {
  script_.polls_until_ready = 100;
  const auto errors = run(
      [&](Group& group) {
        Communicator communicator(api_, group.impl());
        const std::vector<std::byte> from(16);
        std::vector<std::byte> to(16);
        const std::vector<Transfer> transfers = {
            {.peer = 1 - group.rank(),
             .send = from.data(),
             .send_bytes = 16,
             .receive = to.data(),
             .receive_bytes = 16},
            {.peer = 1 - group.rank(), .send = from.data(), .send_bytes = 0, .receive = to.data(), .receive_bytes = 4}};
        communicator.exchange(transfers, nullptr, Phase::kDispatch);
        EXPECT_TRUE(communicator.is_usable());
        communicator.end();
        EXPECT_FALSE(communicator.is_usable());
        group.barrier();
      },
      milliseconds(10'000));
  for (const auto& error : errors) EXPECT_FALSE(error.has_value()) << error->what();
  EXPECT_EQ(script_.blocking, 0);
  EXPECT_EQ(script_.num_made, kNumRanks);
  EXPECT_EQ(script_.num_destroyed, kNumRanks);
  EXPECT_EQ(script_.num_aborted, 0);
  // Nothing is sent where there is nothing.
  EXPECT_EQ(script_.num_sends, kNumRanks);
  EXPECT_EQ(script_.num_receives, 2 * kNumRanks);
}

TEST_F(NcclCommunicator, LostPeerIsAnErrorAndNoHang) {
  const auto errors = run(
      [&](Group& group) {
        Communicator communicator(api_, group.impl());
        group.barrier();
        if (group.rank() == 1) return;  // leaves
        script_.polls_until_ready = -1;
        communicator.exchange({}, nullptr, Phase::kDispatch);
      },
      milliseconds(20'000));
  ASSERT_TRUE(errors[0].has_value());
  EXPECT_EQ(errors[0]->code(), ErrorCode::kPeerLost) << errors[0]->what();
  EXPECT_EQ(errors[0]->context().peer_rank, 1);
  EXPECT_EQ(errors[0]->context().phase, Phase::kDispatch);
  EXPECT_EQ(script_.num_aborted, kNumRanks);
}

TEST_F(NcclCommunicator, WaitEndsWithTheTimeout) {
  script_.polls_until_ready = -1;
  const auto begin = std::chrono::steady_clock::now();
  const auto errors = run([&](Group& group) { fail_to_make(group); }, milliseconds(300));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(5000));
  for (const auto& error : errors) {
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code(), ErrorCode::kTimeout) << error->what();
    EXPECT_EQ(error->context().phase, Phase::kCreate);
  }
  EXPECT_EQ(script_.num_aborted, kNumRanks);
}

TEST_F(NcclCommunicator, FailureCarriesWhatNcclSays) {
  script_.state = ncclSystemError;
  const auto errors = run([&](Group& group) { fail_to_make(group); }, milliseconds(10'000));
  for (const auto& error : errors) {
    ASSERT_TRUE(error.has_value());
    EXPECT_EQ(error->code(), ErrorCode::kSystem);
    EXPECT_NE(std::string(error->what()).find("what the code means (what went wrong)"), std::string::npos)
        << error->what();
  }
}

TEST_F(NcclCommunicator, FailureOfTheFirstRankIsTold) {
  script_.unique_id = ncclInternalError;
  const auto errors = run([&](Group& group) { Communicator communicator(api_, group.impl()); }, milliseconds(10'000));
  ASSERT_TRUE(errors[0].has_value());
  EXPECT_EQ(errors[0]->code(), ErrorCode::kSystem);
  ASSERT_TRUE(errors[1].has_value());
  EXPECT_EQ(errors[1]->code(), ErrorCode::kSystem) << errors[1]->what();  // the same everywhere, as of any system error
  EXPECT_EQ(errors[1]->context().peer_rank, 0);
  EXPECT_EQ(script_.num_made, 0);
}

}  // namespace
}  // namespace epistle::nccl

#endif
