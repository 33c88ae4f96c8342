#include "routing/trace_layer_builder.hpp"

#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "routing/limits.hpp"

namespace epistle {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

struct HeaderRange {
  std::int64_t smallest;
  std::int64_t largest;
};

// In the order of TraceHeader.
constexpr std::array<HeaderRange, kTraceHeaderNames.size()> kHeaderRanges = {
    HeaderRange{0, kMaxInt32}, HeaderRange{1, kMaxRoutedExperts}, HeaderRange{1, kMaxRoutedExperts},
    HeaderRange{0, std::numeric_limits<std::int64_t>::max()}};

std::string_view name_of(TraceColumn column) { return kTraceColumnNames[static_cast<std::size_t>(column)]; }

}  // namespace

std::optional<std::int64_t> TraceLayerBuilder::header(TraceHeader header) const noexcept {
  return headers_[static_cast<std::size_t>(header)];
}

void TraceLayerBuilder::set_header(TraceHeader header, std::int64_t value) {
  const auto idx = static_cast<std::size_t>(header);
  const HeaderRange range = kHeaderRanges[idx];
  if (headers_[idx]) source_->fail_corrupt(fmt::format("the key \"{}\" stands twice", kTraceHeaderNames[idx]));
  if (value < range.smallest || value > range.largest) {
    source_->fail_corrupt(
        fmt::format("\"{}\" is {}, expected {} to {}", kTraceHeaderNames[idx], value, range.smallest, range.largest));
  }
  headers_[idx] = value;
}

void TraceLayerBuilder::begin_column(TraceColumn name) {
  if (column(name).present) source_->fail_corrupt(fmt::format("the key \"{}\" stands twice", name_of(name)));
  column(name).present = true;
}

void TraceLayerBuilder::begin_row(TraceColumn name) {
  Column& own = column(name);
  const auto num_tokens = header(TraceHeader::kNumTokens);
  if (num_tokens && own.num_rows >= *num_tokens) {
    source_->fail_corrupt(
        fmt::format("\"{}\" has more rows than \"num_tokens\" = {}; correct either", name_of(name), *num_tokens));
  }
  own.row_width = 0;
  own.keeps_row = kept_rows_.contains(own.num_rows);
}

std::int64_t TraceLayerBuilder::expected_width() const noexcept {
  return header(TraceHeader::kTopK).value_or(first_row_width_);
}

void TraceLayerBuilder::count_entry(TraceColumn name) {
  Column& own = column(name);
  const std::int64_t expected = expected_width();
  const std::int64_t limit = expected >= 0 ? expected : kMaxRoutedExperts;
  if (++own.row_width > limit) {
    source_->fail_corrupt(
        fmt::format("\"{}\" of token {} has more than {} entries, as many as \"top_k\" or the first "
                    "row allow",
                    name_of(name), own.num_rows, limit));
  }
}

void TraceLayerBuilder::add_expert_id(std::int64_t id) {
  count_entry(TraceColumn::kExpertIds);
  const std::int64_t row = column(TraceColumn::kExpertIds).num_rows;
  const std::int64_t id_end = header(TraceHeader::kNumExperts).value_or(kMaxRoutedExperts);
  if (id < kNoExpert || id >= id_end) {
    source_->fail_corrupt(fmt::format("token {} has expert id {}, expected {} to {}", row, id, kNoExpert, id_end - 1));
  }
  if (id == kNoExpert) {
    ++num_dropped_;
  } else {
    count_expert(id);
  }
  if (!column(TraceColumn::kExpertIds).keeps_row) return;
  source_->kept().add_room_in(expert_ids_);
  expert_ids_.push_back(static_cast<std::int32_t>(id));
}

void TraceLayerBuilder::count_expert(std::int64_t id) {
  const auto expert = static_cast<std::size_t>(id);
  if (expert >= tokens_per_expert_.size()) {
    tokens_per_expert_.resize(expert + 1, 0);
    last_row_of_expert_.resize(expert + 1, 0);
  }
  const std::int64_t row = column(TraceColumn::kExpertIds).num_rows;
  if (last_row_of_expert_[expert] == row + 1) {
    source_->fail_corrupt(fmt::format("token {} names expert {} twice, expected distinct experts", row, id));
  }
  last_row_of_expert_[expert] = row + 1;
  ++tokens_per_expert_[expert];
}

void TraceLayerBuilder::add_weight(double weight) {
  count_entry(TraceColumn::kWeights);
  const Column& own = column(TraceColumn::kWeights);
  if (std::fabs(weight) > static_cast<double>(std::numeric_limits<float>::max())) {
    source_->fail_corrupt(
        fmt::format("token {} has weight {}, expected a number that fits fp32", own.num_rows, weight));
  }
  if (!own.keeps_row) return;
  source_->kept().add_room_in(weights_);
  weights_.push_back(static_cast<float>(weight));
}

void TraceLayerBuilder::end_row(TraceColumn name) {
  Column& own = column(name);
  if (first_row_width_ < 0) first_row_width_ = own.row_width;
  if (own.row_width != expected_width()) {
    source_->fail_corrupt(fmt::format("\"{}\" of token {} has {} entries, expected {}", name_of(name), own.num_rows,
                                      own.row_width, expected_width()));
  }
  ++own.num_rows;
}

void TraceLayerBuilder::check_headers() const {
  for (std::size_t idx = 0; idx < headers_.size(); ++idx) {
    if (!headers_[idx]) source_->fail_corrupt(fmt::format("the key \"{}\" is missing", kTraceHeaderNames[idx]));
  }
  if (!column(TraceColumn::kExpertIds).present) source_->fail_corrupt("the key \"expert_ids\" is missing");
  const std::int64_t num_experts = *header(TraceHeader::kNumExperts);
  const std::int64_t top_k = *header(TraceHeader::kTopK);
  if (top_k > num_experts) {
    source_->fail_corrupt(fmt::format("\"top_k\" is {}, expected at most \"num_experts\" = {}", top_k, num_experts));
  }
}

void TraceLayerBuilder::check_num_rows(TraceColumn name) const {
  const std::int64_t num_tokens = *header(TraceHeader::kNumTokens);
  if (column(name).present && column(name).num_rows != num_tokens) {
    source_->fail_corrupt(fmt::format("\"{}\" has {} rows, expected \"num_tokens\" = {}", name_of(name),
                                      column(name).num_rows, num_tokens));
  }
}

void TraceLayerBuilder::finish() {
  check_headers();
  check_num_rows(TraceColumn::kExpertIds);
  check_num_rows(TraceColumn::kWeights);
  const std::int64_t top_k = *header(TraceHeader::kTopK);
  const std::int64_t num_experts = *header(TraceHeader::kNumExperts);
  if (first_row_width_ >= 0 && first_row_width_ != top_k) {
    source_->fail_corrupt(fmt::format("rows have {} entries, expected \"top_k\" = {}", first_row_width_, top_k));
  }
  if (static_cast<std::int64_t>(tokens_per_expert_.size()) > num_experts) {
    source_->fail_corrupt(fmt::format("a token has expert id {}, expected {} to {}", tokens_per_expert_.size() - 1,
                                      kNoExpert, num_experts - 1));
  }
  tokens_per_expert_.resize(static_cast<std::size_t>(num_experts), 0);
  if (column(TraceColumn::kWeights).present) return;
  source_->kept().add(static_cast<std::int64_t>(expert_ids_.size() * sizeof(float)));
  weights_.assign(expert_ids_.size(), 1.0F);
}

TraceLayerSummary TraceLayerBuilder::take_summary() {
  return {.layer = static_cast<std::int32_t>(*header(TraceHeader::kLayer)),
          .num_experts = static_cast<std::int32_t>(*header(TraceHeader::kNumExperts)),
          .top_k = static_cast<std::int32_t>(*header(TraceHeader::kTopK)),
          .num_tokens = *header(TraceHeader::kNumTokens),
          .num_dropped = num_dropped_,
          .tokens_per_expert = std::move(tokens_per_expert_)};
}

RoutingTable TraceLayerBuilder::take_rows() {
  const auto top_k = static_cast<std::int32_t>(*header(TraceHeader::kTopK));
  return {.num_tokens = static_cast<std::int64_t>(expert_ids_.size()) / top_k,
          .num_experts = static_cast<std::int32_t>(*header(TraceHeader::kNumExperts)),
          .top_k = top_k,
          .expert_ids = std::move(expert_ids_),
          .weights = std::move(weights_)};
}

}  // namespace epistle
