// How rows travel: what a dispatcher of the CUDA device brings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "epistle/device/row_flags.hpp"
#include "epistle/dispatcher.hpp"

#include "core/complaint.hpp"
#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/cuda_handle.hpp"
#include "dispatch/cuda/engine/launch.hpp"

namespace epistle::cuda {

class RowTransport {
 public:
  virtual ~RowTransport() = default;
  RowTransport(const RowTransport&) = delete;
  RowTransport& operator=(const RowTransport&) = delete;

  /// Whether ranks agree on every call on the host: then none can be captured into a graph, the host knows the counts
  /// of a handle before its first use, and kernels do not wait for each other. Otherwise kernels announce their calls.
  [[nodiscard]] virtual bool agrees_on_host() const noexcept = 0;
  /// Why no call can be made any more.
  [[nodiscard]] virtual Complaint find_broken() const { return std::nullopt; }
  /// Collective, under exact sizing: what the rows of a prepared routing need, by rank; the same on all ranks.
  /// `demands` holds what follows from the summary.
  virtual void raise_demands(CudaHandleState& handle, std::vector<RowDemand>& demands) {
    static_cast<void>(handle);
    static_cast<void>(demands);
  }
  /// Ends what moves rows without looking at the abort flag of the device; returns the phase it was in, kNone where
  /// there was nothing to end.
  virtual Phase abandon() noexcept { return Phase::kNone; }
  /// The dispatcher goes; its other parts are still there.
  virtual void end() noexcept {}

  /// On how many SMs a call runs, and by which variant of its kernel; and the same for people.
  [[nodiscard]] virtual TuningChoice tuning_for(const TuningQuery& query) const = 0;
  [[nodiscard]] virtual std::string describe_tuning(const TuningQuery& query) const = 0;
  /// Puts the move or the sum on the stream; `args` is complete but for the tuning.
  virtual void start_move(const CudaHandleState& handle, MoveArgs& args) = 0;
  virtual void start_sum(const CudaHandleState& handle, SumArgs& args) = 0;
  /// Whether a dispatch with ids, under capacity sizing, is one call of the ranks, which start_routed_move makes.
  /// Otherwise it is a prepare and a dispatch.
  [[nodiscard]] virtual bool routes_rows() const noexcept { return false; }
  virtual void start_routed_move(const CudaHandleState& handle, const PrepareArgs& routing, MoveArgs& args) {
    static_cast<void>(handle);
    static_cast<void>(routing);
    static_cast<void>(args);
  }
  /// Before a call other than combine uses a handle that start_routed_move has filled: what that has left open.
  virtual void complete(const CudaHandleState& handle) { static_cast<void>(handle); }
  /// Whether combine reads nothing where peers have it: they send it.
  [[nodiscard]] virtual bool pushes_outputs() const noexcept { return false; }
  /// True when start_move can put a kernel behind prepare that starts before that has ended (MoveArgs::behind_prepare).
  [[nodiscard]] virtual bool can_follow_closely() const noexcept { return false; }
  /// Flags of what is received into buffer `buffer`, and of the outputs there; without a number where none are raised.
  [[nodiscard]] virtual device::RowFlags row_flags(std::int32_t buffer) const {
    static_cast<void>(buffer);
    return {};
  }
  /// Where ranks agree on the host: whether peers read this rank's expert outputs where they lie.
  [[nodiscard]] virtual bool reads_peers_outputs() const noexcept { return false; }
  /// Brings gradients of the weights to their sources, and says so; otherwise they are read where peers have them, or
  /// from the mirrors of ranks of other hosts, which this has to fill. `args` is complete.
  virtual bool bring_weight_gradients(const CudaHandleState& handle, const WeightGradientArgs& args) {
    static_cast<void>(handle);
    static_cast<void>(args);
    return false;
  }
  /// Bytes put on links to other domains so far.
  [[nodiscard]] virtual std::int64_t network_bytes() const noexcept { return 0; }
  [[nodiscard]] virtual WireBytes wire_bytes(const CudaHandleState& handle) const = 0;
  /// What links to other domains are, and how rows of a GPU get there; empty where there are none.
  [[nodiscard]] virtual std::string describe_links() const { return {}; }

 protected:
  RowTransport() = default;
};

/// Makes the transport of a dispatcher; collective. The context outlives it.
using MakeTransport = std::unique_ptr<RowTransport> (*)(EngineContext& context);

}  // namespace epistle::cuda
