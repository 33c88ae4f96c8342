// `hybrid` on CUDA: each slow link is crossed once per (token, domain). Kernels pack what leaves a domain into pinned
// host memory, the host puts it on links chunk by chunk, and kernels of the peer pass what has landed on to the GPUs of
// its domain. On the way back the peer's kernels sum the expert outputs of its domain where they lie, and one row per
// (token, domain) returns.
//
// Every call agrees on the host, and no kernel waits for another rank: a rank waits for its own stream, then tells the
// others. So calls cannot be captured into a graph. The send half does all that crosses, the receive half only what
// follows on this rank.
//
// What lets nobody read or overwrite what another rank still uses, in every call:
//   start   all streams have come to the call: landing places and received rows are free, and what the call reads of
//           this rank is there. With it each rank says which of its buffers it uses.
//   end     all kernels that touch other ranks' memory are done, and everything has been delivered.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dispatch/cuda/direct/tuning.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/transport.hpp"
#include "dispatch/cuda/hybrid/hybrid_launch.hpp"
#include "dispatch/cuda/hybrid/link_buffers.hpp"
#include "dispatch/cuda/hybrid/route_exchange.hpp"

namespace epistle::cuda {

class HybridTransport final : public RowTransport {
 public:
  /// Collective, in a group of several domains.
  explicit HybridTransport(EngineContext& context);

  [[nodiscard]] bool agrees_on_host() const noexcept override { return true; }
  [[nodiscard]] bool reads_peers_outputs() const noexcept override { return true; }
  void raise_demands(CudaHandleState& handle, std::vector<RowDemand>& demands) override;
  [[nodiscard]] TuningChoice tuning_for(const TuningQuery& query) const override { return choose(query); }
  [[nodiscard]] std::string describe_tuning(const TuningQuery& query) const override { return describe(query); }
  void start_move(const CudaHandleState& handle, MoveArgs& args) override;
  void start_sum(const CudaHandleState& handle, SumArgs& args) override;
  bool bring_weight_gradients(const CudaHandleState& handle, const WeightGradientArgs& args) override;
  [[nodiscard]] std::int64_t network_bytes() const noexcept override { return links_.traffic().sent_bytes(); }
  [[nodiscard]] std::string describe_links() const override { return links_.describe(); }
  [[nodiscard]] WireBytes wire_bytes(const CudaHandleState& handle) const override {
    return routes_.wire_bytes(handle);
  }

 private:
  /// What goes back over links: a row for every pair that this rank was sent.
  struct ReturnedRows {
    BufferSection from = BufferSection::kSendRows;
    BufferSection to = BufferSection::kStageRows;
    std::int64_t row_bytes = 0;
  };

  /// For errors of a call: where it stands, and what the other ranks owe in it.
  struct Awaited {
    Phase phase = Phase::kNone;
    MissingRows missing;
  };

  [[nodiscard]] const Domains& domains() const noexcept { return context_.group->gpu_domains(); }
  [[nodiscard]] int own_domain() const noexcept { return domains().domain_of(context_.rank()); }
  [[nodiscard]] int num_blocks(TunedCall call, const CudaHandleState& handle) const;

  /// The first step of every call: `work` goes on this rank's stream before it, and is done with it.
  template <typename Work>
  DomainBuffers start_call(BufferSection section, std::int32_t buffer, Phase phase, const Work& work);
  /// The last one. `complaint`: what this rank has met since the first.
  void end_call(const Awaited& awaited, Complaint complaint);

  void move_across(const CudaHandleState& handle, const MoveArgs& args);
  void send_chunk(const RouteTables& tables, const MoveArgs& args, int domain, const Chunk& chunk);
  void forward(const ForwardRowsArgs& args);
  template <typename Forward>
  void send_and_forward(const RouteTables& tables, const MoveArgs& args, const Awaited& awaited,
                        const Forward& forward_chunk);
  void return_rows(const RouteTables& tables, const ReturnedRows& what, const Awaited& awaited);
  void sum_pairs(const CudaHandleState& handle, const SumArgs& args);

  EngineContext& context_;
  LinkBuffers links_;
  RouteExchange routes_;
  std::vector<std::int64_t> num_forwarded_;  ///< [num_domains] chunks of the dispatch under way
};

}  // namespace epistle::cuda
