#include "dispatch/host/alltoall/packed_rows.hpp"

namespace epistle::host {

Segment PackedRows::sent(int src, int dst) const {
  const ExpertPartition partition = layout_.partition();
  const int first = layout_.token_major() ? dst : partition.first_expert(dst);
  const int num_columns = layout_.token_major() ? 1 : partition.num_local_experts(dst);
  Segment segment;
  for (int column = 0; column < first; ++column) segment.begin += handle_.tables.num_kept(src, column);
  for (int column = first; column < first + num_columns; ++column) {
    segment.num_rows += handle_.tables.num_kept(src, column);
  }
  return segment;
}

std::int64_t PackedRows::received_begin(int src, int dst) const {
  std::int64_t begin = 0;
  for (int before = 0; before < src; ++before) begin += sent(before, dst).num_rows;
  return begin;
}

Segment PackedRows::returned(int src, int dst) const {
  return {.begin = layout_.token_major() ? handle_.tables.row_begin(src, dst) : received_begin(src, dst),
          .num_rows = sent(src, dst).num_rows};
}

Segment PackedRows::returned_sums(int src, int dst) const {
  Segment segment{.begin = 0, .num_rows = handle_.num_pairs(src, dst)};
  for (int before = 0; before < src; ++before) segment.begin += handle_.num_pairs(before, dst);
  return segment;
}

std::int64_t PackedRows::brought_sums_begin(int src, int dst) const {
  std::int64_t begin = 0;
  for (int before = 0; before < dst; ++before) begin += handle_.num_pairs(src, before);
  return begin;
}

}  // namespace epistle::host
