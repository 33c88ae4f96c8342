// `alltoall` on CUDA: permute, one all-to-all-v over NCCL, unpermute; the conservative baseline. Dispatch sends one row
// per (token, rank). Combine sends back the rows of token_major as they are, partial sums where `hierarchical` sums
// expert rows, and otherwise one row per (token, expert).
//
// NCCL moves what the host tells it to, so that the host knows the counts of a handle before its first use: under
// capacity sizing the first call with a handle waits for them. Every call agrees on the host: ranks learn there whether
// another one has refused its input or makes another call. Calls cannot be captured into a graph. The send half does
// the exchange, the receive half only what follows it on this rank.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "dispatch/cuda/alltoall/exchange.hpp"
#include "dispatch/cuda/alltoall/exchange_plan.hpp"
#include "dispatch/cuda/direct/tuning.hpp"
#include "dispatch/cuda/engine/buffer_carver.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/engine/transport.hpp"
#include "gpu/nccl/communicator.hpp"

namespace epistle::nccl {

class AllToAllTransport final : public cuda::RowTransport {
 public:
  /// Collective. Throws kUnsupported, on all ranks, where two ranks have the same GPU or NCCL cannot be loaded
  /// (kPeerRejected where only another rank cannot).
  explicit AllToAllTransport(cuda::EngineContext& context);

  [[nodiscard]] bool agrees_on_host() const noexcept override { return true; }
  [[nodiscard]] Complaint find_broken() const override;
  void raise_demands(cuda::CudaHandleState& handle, std::vector<RowDemand>& demands) override;
  Phase abandon() noexcept override;
  void end() noexcept override;
  [[nodiscard]] cuda::TuningChoice tuning_for(const cuda::TuningQuery& query) const override {
    return cuda::choose(query);
  }
  [[nodiscard]] std::string describe_tuning(const cuda::TuningQuery& query) const override {
    return cuda::describe(query);
  }
  void start_move(const cuda::CudaHandleState& handle, cuda::MoveArgs& args) override;
  void start_sum(const cuda::CudaHandleState& handle, cuda::SumArgs& args) override;
  /// Over several hosts: fills the mirrors of ranks of other hosts, from which they are read.
  bool bring_weight_gradients(const cuda::CudaHandleState& handle, const cuda::WeightGradientArgs& args) override;
  /// Pairs that keep a place in expert layouts although all their rows were dropped are sent, too.
  [[nodiscard]] WireBytes wire_bytes(const cuda::CudaHandleState& handle) const override;

 private:
  /// What the host knows of a handle.
  struct Known {
    std::uint64_t prepare_id = 0;
    PairTable pairs;
    std::vector<Block> sent;      ///< entries by rank, as begin and number; empty until asked for
    std::vector<Block> returned;  ///< likewise
  };
  /// One kind of rows in an exchange.
  struct Rows {
    const std::byte* send = nullptr;
    std::byte* receive = nullptr;
    std::int64_t row_bytes = 0;
  };

  /// Whether combine sends one row per (token, expert).
  [[nodiscard]] bool returns_entries() const noexcept { return !context_.plan.combines_per_rank(); }
  void take_exchange_memory();
  [[nodiscard]] Known& known(const cuda::CudaHandleState& handle);
  void find_entries(const cuda::CudaHandleState& handle, Known& facts);
  void queue(std::vector<Transfer>& transfers, int peer, const Rows& rows, const Block& sent,
             const Block& received) const;
  void exchange(const std::vector<Transfer>& transfers, Phase phase);
  void exchange_tokens(const cuda::MoveArgs& args, const PairTable& pairs);
  void send_sums(const cuda::CudaHandleState& handle, const cuda::SumArgs& args);

  cuda::EngineContext& context_;
  std::unique_ptr<Communicator> communicator_;
  std::unordered_map<const cuda::CudaHandleState*, Known> known_;
  cuda::PinnedMemory totals_;
  cuda::PinnedMemory entry_counts_;
  cuda::DeviceBuffer entry_memory_;
  EntryTables entry_tables_;
  std::uint64_t entries_of_ = 0;  ///< handle that the tables are of; 0 = none
  Phase phase_ = Phase::kNone;    ///< of the last exchange
};

}  // namespace epistle::nccl
