#include "measure/bench_check.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "dispatch/reference/quantise.hpp"

namespace epistle {
namespace {

void fill_with_poison(std::byte* bytes, std::int64_t num_bytes) { std::fill_n(bytes, num_bytes, BenchCheck::kPoison); }

RowRange part_of(RowRange all, std::int64_t part) {
  const std::int64_t size = all.end - all.begin;
  return {all.begin + size * part / BenchCheck::kNumParts, all.begin + size * (part + 1) / BenchCheck::kNumParts};
}

}  // namespace

BenchCheck::BenchCheck(Group& group, const Expectation& expectation, BenchInputs& inputs)
    : group_(group),
      expectation_(expectation),
      inputs_(inputs),
      rank_(group.rank()),
      expected_out_(inputs.out().size()) {}

void BenchCheck::poison(const ReceivedData& received) {
  fill_with_poison(received.row_data(), received.num_rows() * received.rows.row_bytes());
  if (received.scales.data != nullptr) {
    fill_with_poison(received.scale_data(), received.scale_bytes());
  }
  std::fill(inputs_.out().begin(), inputs_.out().end(), kPoison);
}

Mismatch BenchCheck::run(const ReceivedData& received, const OnPart& on_part) {
  Mismatch mismatch = expectation_.check_description(rank_, received.description);
  for (std::int64_t part = 0; part < kNumParts; ++part) {
    if (!mismatch) mismatch = check_rows(received, part_of(expectation_.all_rows(rank_), part));
    if (!mismatch) mismatch = check_sums(part_of({0, inputs_.shape().num_tokens}, part));
    group_.barrier();
    if (on_part) on_part(part + 1, kNumParts);
  }
  return mismatch;
}

std::int64_t BenchCheck::num_bytes(const ReceivedData& received) const {
  std::int64_t num_rows = received.num_rows();
  if (!expectation_.config().zero_padding) {
    const auto& rows = expectation_.layout(rank_).rows;
    num_rows = std::count_if(rows.begin(), rows.end(), [](const auto& row) { return row.src_rank >= 0; });
  }
  return num_rows * (received.rows.row_bytes() + received.scale_row_bytes()) +
         static_cast<std::int64_t>(inputs_.out().size());
}

Mismatch BenchCheck::check_rows(const ReceivedData& received, RowRange range) const {
  // What travels of a token: its row and its scales.
  std::vector<std::byte> row(static_cast<std::size_t>(received.rows.row_bytes()));
  std::vector<std::byte> scales(static_cast<std::size_t>(received.scale_row_bytes()));
  std::vector<std::byte> given(static_cast<std::size_t>(inputs_.row_bytes()));
  const auto make = [&](int src_rank, std::int64_t token) {
    if (expectation_.config().quantises) {
      inputs_.fill_token(src_rank, token, given.data());
      reference::quantise_row(expectation_.config(), given.data(), row.data(), scales.data());
      return;
    }
    inputs_.fill_token(src_rank, token, row.data());
    fill_bytes(inputs_.key(RowStream::kScales, src_rank, token), scales.data(),
               static_cast<std::int64_t>(scales.size()));
  };
  if (Mismatch mismatch = expectation_.check_rows(
          rank_,
          {.rows = received.row_data(), .row_bytes = received.rows.row_bytes(), .range = range, .what = "dispatch"},
          [&](int src_rank, std::int64_t token, std::byte* target) {
            make(src_rank, token);
            std::copy(row.begin(), row.end(), target);
          })) {
    return mismatch;
  }
  if (received.scales.data == nullptr) return std::nullopt;
  const std::vector<std::byte> actual = received.scales_by_row(0, range.end);
  return expectation_.check_rows(
      rank_, {.rows = actual.data(), .row_bytes = received.scale_row_bytes(), .range = range, .what = "scales"},
      [&](int src_rank, std::int64_t token, std::byte* target) {
        make(src_rank, token);
        std::copy(scales.begin(), scales.end(), target);
      });
}

Mismatch BenchCheck::check_sums(RowRange tokens) {
  const ResolvedConfig& config = expectation_.config();
  const std::int64_t row_bytes = inputs_.output_row_bytes();
  if (tokens.end > num_expected_tokens_) {
    std::vector<std::byte> row(static_cast<std::size_t>(row_bytes));
    const reference::RowReader reader = [&](int peer, std::int32_t idx, std::vector<float>& values) {
      fill_values(inputs_.key(RowStream::kExpertOutput, peer, idx), config.combine_dtype, row.data(), row_bytes);
      values.resize(static_cast<std::size_t>(config.combine_hidden));
      for (std::int64_t element = 0; element < config.combine_hidden; ++element) {
        values[static_cast<std::size_t>(element)] = reference::read_element(config.combine_dtype, row.data(), element);
      }
    };
    const RowRange missing{num_expected_tokens_, tokens.end};
    expectation_.combine(rank_, missing, reader, config.apply_weights,
                         expected_out_.data() + missing.begin * row_bytes);
    num_expected_tokens_ = tokens.end;
  }
  for (std::int64_t token = tokens.begin; token < tokens.end; ++token) {
    const std::byte* const actual = inputs_.out().data() + token * row_bytes;
    const std::byte* const expected = expected_out_.data() + token * row_bytes;
    const auto length = static_cast<std::size_t>(row_bytes);
    if (std::memcmp(actual, expected, length) == 0) continue;
    return compare_bytes(actual, expected, length, fmt::format("combine of token {}", token));
  }
  return std::nullopt;
}

}  // namespace epistle
