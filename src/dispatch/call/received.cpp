// What callers hold.
#include "epistle/received.hpp"

#include <utility>

#include "epistle/device/row_flags.hpp"
#include "epistle/error.hpp"

#include "dispatch/call/dispatcher_impl.hpp"

namespace epistle {
namespace {

HandleState& require(const std::shared_ptr<HandleState>& state) {
  if (state == nullptr) {
    throw Error(ErrorCode::kHandleMismatch, "the handle is empty (moved from, or never prepared); call prepare first");
  }
  return *state;
}

const RowBuffer& require(const std::shared_ptr<RowBuffer>& buffer) {
  if (buffer == nullptr) {
    throw Error(ErrorCode::kHandleMismatch,
                "this Received is empty (moved from, released, or never filled); call dispatch first");
  }
  return *buffer;
}

}  // namespace

Handle::Handle() noexcept = default;
Handle::~Handle() = default;
Handle::Handle(const Handle&) noexcept = default;
Handle& Handle::operator=(const Handle&) noexcept = default;
Handle::Handle(Handle&&) noexcept = default;
Handle& Handle::operator=(Handle&&) noexcept = default;
Handle::Handle(std::shared_ptr<HandleState> state) noexcept : state_(std::move(state)) {}

const RowDescription& Handle::description() const { return require(state_).description; }

const RoutingStats* Handle::try_stats() const { return require(state_).counts_are_known() ? &state_->stats : nullptr; }

const RoutingStats& Handle::wait_stats() const {
  require(state_).wait_for_counts();
  return state_->stats;
}

std::vector<std::int32_t> Handle::read_expert_counts() const { return require(state_).read_expert_counts(); }

IdsView Handle::routed_ids() const { return require(state_).routed_ids(); }

Received::Received() noexcept = default;
Received::~Received() = default;
Received::Received(const Received&) noexcept = default;
Received& Received::operator=(const Received&) noexcept = default;
Received::Received(Received&&) noexcept = default;
Received& Received::operator=(Received&&) noexcept = default;
Received::Received(std::shared_ptr<HandleState> state, std::shared_ptr<RowBuffer> buffer, bool is_gradient) noexcept
    : state_(std::move(state)), buffer_(std::move(buffer)), is_gradient_(is_gradient) {}

Rows Received::rows() const {
  if (is_gradient_) return expert_outputs();
  const RowBuffer& buffer = require(buffer_);
  return {.data = buffer.rows, .num_rows = num_rows(), .hidden = buffer.hidden, .dtype = buffer.dtype};
}

ScalesView Received::scales() const {
  const RowBuffer& buffer = require(buffer_);
  if (is_gradient_ || buffer.scale_columns == 0) return {};
  ScalesView view{.data = buffer.scales,
                  .num_rows = num_rows(),
                  .num_columns = buffer.scale_columns,
                  .format = buffer.scale_format,
                  .row_stride = buffer.scale_row_bytes / scale_element_bytes(buffer.scale_format)};
  const ScalePlaces places(buffer.scale_order, buffer.scale_row_bytes, num_rows(), buffer.rows_per_block);
  if (!places.in_columns()) return view;
  if (view.format == ScaleFormat::kUe8m0) view.format = ScaleFormat::kUe8m0x4;
  view.num_columns = places.num_words();
  view.row_stride = 1;
  view.column_stride = places.column_stride();
  view.rows_per_block = buffer.rows_per_block;
  view.block_stride = places.block_stride();
  return view;
}

Rows Received::expert_outputs() const {
  const RowBuffer& buffer = require(buffer_);
  return {.data = buffer.outputs, .num_rows = num_rows(), .hidden = buffer.output_hidden, .dtype = buffer.output_dtype};
}

device::RowFlags Received::row_flags() const {
  const RowBuffer& buffer = require(buffer_);
  if (buffer.raises_flags && !is_gradient_) return buffer.flags;
  throw Error(ErrorCode::kUnsupported,
              buffer.flags.number == nullptr
                  ? "the dispatcher raises no flags of rows; make a low_latency dispatcher with CudaOptions::row_flags"
                  : "these rows were not received by a dispatch with ids, and only that raises flags of rows; give it "
                    "the expert ids in place of a handle");
}

const RowDescription& Received::description() const {
  static_cast<void>(require(buffer_));
  return state_->description;
}

Handle Received::handle() const noexcept { return CallAccess::handle(state_); }

void Received::release() noexcept {
  buffer_.reset();
  state_.reset();
}

Pending::Pending() noexcept = default;
Pending::~Pending() = default;
Pending::Pending(Pending&&) noexcept = default;
Pending& Pending::operator=(Pending&&) noexcept = default;

Received Pending::received() const {
  if (state_ == nullptr || buffer_ == nullptr) {
    throw Error(
        ErrorCode::kHandleMismatch,
        "where the rows of this call will lie is not known before its receive half; of a dispatch with a handle it "
        "is");
  }
  return CallAccess::received(state_, buffer_, RowBuffer::Holds::kRows);
}

}  // namespace epistle
