#include "support/mailbox.hpp"

#include <cstdint>

#include "dispatch/host/engine/host_functions.hpp"
#include "dispatch/host/engine/sums.hpp"
#include "dispatch/host/engine/wire_rows.hpp"
#include "dispatch/registry/registry.hpp"

namespace epistle::testing {
namespace {

class MailboxMover final : public host::RowMover {
 public:
  explicit MailboxMover(host::HostContext& context) : context_(context) {}

  void send_rows(const host::MoveJob& job) override {
    std::byte* const rows = context_.own_section(BufferSection::kSendRows);
    std::byte* const scales = context_.own_section(BufferSection::kSendScales);
    const host::WireRows wire_rows(context_, job);
    for (std::int64_t token = 0; token < job.handle->num_tokens; ++token) {
      wire_rows.write(token, rows + token * job.row_bytes, scales + token * job.scale_bytes, host::StoreMode::kCached);
    }
  }

  void receive_rows(const host::MoveJob& job) override {
    const host::HostHandle& handle = *job.handle;
    const host::ReceivedScales scales = context_.received_scales(context_.rank, handle);
    for (std::int64_t row = 0; row < handle.description.num_rows; ++row) {
      const std::int32_t source = handle.src_rank[static_cast<std::size_t>(row)];
      if (source < 0) continue;
      const std::int64_t token = handle.src_token[static_cast<std::size_t>(row)];
      context_.copy_block({.source = context_.section(source, BufferSection::kSendRows) + token * job.row_bytes,
                           .target = context_.own_section(job.target) + row * job.row_bytes,
                           .num_rows = 1,
                           .row_bytes = job.row_bytes});
      if (job.scale_bytes == 0) continue;
      scales.put(row, context_.section(source, BufferSection::kSendScales) + token * job.scale_bytes);
    }
  }

  void send_sums(const host::SumRequest& /*request*/) override {}

  void receive_sums(const host::SumRequest& request) override { host::sum_rows_in_place(context_, request); }

  void apply_row_weights(const host::RowWeightJob& job) override { host::apply_row_weights(context_, job); }

 private:
  host::HostContext& context_;
};

}  // namespace

void register_mailbox() {
  static const DispatcherInfo info(kMailbox, Device::kHost, "every rank fetches its rows: of the tests",
                                   host::host_capabilities(),
                                   host::host_functions<MailboxMover, host::PublishedInputRules>());
  static const bool is_registered = (register_dispatcher(info), true);
  static_cast<void>(is_registered);
}

}  // namespace epistle::testing
