// The vectorised loops on every instruction set of this processor, against scalar code.
#include "dispatch/host/engine/row_kernels.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "core/numeric.hpp"
#include "dispatch/reference/oracle.hpp"
#include "support/sanitizers.hpp"
#include "support/scenario_round.hpp"

namespace epistle::host {
namespace {

using epistle::testing::kInstrumented;
using epistle::testing::mix;
using epistle::testing::odd_value;
using epistle::testing::unit;

constexpr DType kSummedTypes[] = {DType::kBf16, DType::kFp16, DType::kFp32};
constexpr StoreMode kModes[] = {StoreMode::kCached, StoreMode::kStreaming};

class RowKernels : public ::testing::Test {
 protected:
  ~RowKernels() override { use_simd_target(""); }

  static void on_every_target(const std::function<void()>& test) {
    for (const std::string& name : simd_target_names()) {
      SCOPED_TRACE(name);
      use_simd_target(name);
      EXPECT_EQ(simd_target_name(), name);
      test();
    }
  }

  /// A row of values of `dtype`; one in `odd_one_in` of them infinite, NaN, subnormal or -0.
  static std::vector<std::byte> random_row(DType dtype, std::size_t num_bytes, std::uint64_t key,
                                           std::uint64_t odd_one_in = 29) {
    std::vector<std::byte> row(num_bytes);
    const auto num_elements = static_cast<std::int64_t>(num_bytes) / dtype_bytes(dtype);
    for (std::int64_t idx = 0; idx < num_elements; ++idx) {
      const std::uint64_t bits = mix(key, static_cast<std::uint64_t>(idx));
      const float value = bits % odd_one_in == 0 ? odd_value(bits >> 8) : static_cast<float>(unit(bits) * 8.0 - 4.0);
      reference::write_element(dtype, row.data(), idx, value);
    }
    return row;
  }
};

TEST_F(RowKernels, UnknownTargetIsRefused) {
  EXPECT_FALSE(simd_target_names().empty());
  try {
    use_simd_target("MMX");
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find(simd_target_names().front()), std::string::npos) << error.what();
  }
}

TEST_F(RowKernels, NamesDoNotDependOnTheTargetInUse) {
  const auto names = simd_target_names();
  use_simd_target(names.back());
  EXPECT_EQ(simd_target_names(), names);
  use_simd_target("");
  EXPECT_EQ(simd_target_name(), names.front());
}

TEST_F(RowKernels, CopyRowCopiesEveryByteAndNoOther) {
  constexpr std::size_t kMaxBytes = 300;
  constexpr std::size_t kGuardBytes = 128;
  constexpr auto kGuard = std::byte{0xd7};
  std::vector<std::byte> source(kMaxBytes + 2 * kGuardBytes);
  for (std::size_t idx = 0; idx < source.size(); ++idx) source[idx] = static_cast<std::byte>(mix(1, idx));
  on_every_target([&] {
    alignas(64) std::byte target[kMaxBytes + 2 * kGuardBytes];
    for (const StoreMode mode : kModes) {
      for (std::size_t num_bytes = 0; num_bytes <= kMaxBytes; ++num_bytes) {
        for (const std::size_t source_offset : {0U, 1U, 16U, 23U}) {
          for (const std::size_t target_offset : {0U, 1U, 4U, 8U, 16U, 31U, 32U, 48U}) {
            std::memset(target, static_cast<int>(kGuard), sizeof(target));
            std::byte* const begin = target + kGuardBytes / 2 + target_offset;
            copy_row(source.data() + source_offset, begin, num_bytes, mode);
            store_fence();
            ASSERT_EQ(std::memcmp(begin, source.data() + source_offset, num_bytes), 0)
                << num_bytes << " bytes, offsets " << source_offset << " and " << target_offset;
            for (const std::byte* byte = target; byte != begin; ++byte) ASSERT_EQ(*byte, kGuard) << num_bytes;
            for (const std::byte* byte = begin + num_bytes; byte != target + sizeof(target); ++byte) {
              ASSERT_EQ(*byte, kGuard) << num_bytes << " bytes, target offset " << target_offset;
            }
          }
        }
      }
    }
  });
}

// ---- Conversions ----------------------------------------------------------------------------------------------------

TEST_F(RowKernels, EverySixteenBitPatternIsReadExactly) {
  constexpr std::size_t kStep = kInstrumented ? 31 : 1;
  std::vector<std::uint16_t> patterns(65536 / kStep / 8 * 8);
  for (std::size_t idx = 0; idx < patterns.size(); ++idx) patterns[idx] = static_cast<std::uint16_t>(idx * kStep);
  const auto* const source = reinterpret_cast<const std::byte*>(patterns.data());
  on_every_target([&] {
    std::vector<std::uint16_t> scaled(patterns.size());
    for (const DType dtype : {DType::kBf16, DType::kFp16}) {
      for (const float weight : {1.0F, 0.5F, -3.0F, 1e-3F, 65536.0F, -0.0F, INFINITY, NAN}) {
        scale_row(dtype, source, weight, reinterpret_cast<std::byte*>(scaled.data()), 2 * patterns.size());
        for (std::size_t idx = 0; idx < patterns.size(); ++idx) {
          const float value = reference::read_element(dtype, source, static_cast<std::int64_t>(idx));
          std::uint16_t expected = 0;
          reference::write_element(dtype, reinterpret_cast<std::byte*>(&expected), 0, weight * value);
          ASSERT_EQ(scaled[idx], expected) << to_string(dtype) << ", pattern " << idx << " times " << weight;
        }
      }
    }
  });
}

TEST_F(RowKernels, EveryRoundingOfFp32) {
  constexpr std::uint32_t kStep = kInstrumented ? 31 : 1;
  // Eight ones, times any weight: the kernel rounds the weight.
  const auto check = [](DType dtype, float value) {
    const std::uint16_t one = dtype == DType::kBf16 ? 0x3f80 : 0x3c00;
    std::array<std::uint16_t, 8> ones;
    std::array<std::uint16_t, 8> out;
    ones.fill(one);
    scale_row(dtype, reinterpret_cast<const std::byte*>(ones.data()), value, reinterpret_cast<std::byte*>(out.data()),
              16);
    const std::uint16_t expected = dtype == DType::kBf16 ? numeric::fp32_to_bf16(value) : numeric::fp32_to_fp16(value);
    for (const std::uint16_t rounded : out)
      ASSERT_EQ(rounded, expected) << to_string(dtype) << " of " << std::hexfloat << value;
  };
  on_every_target([&] {
    for (const DType dtype : {DType::kBf16, DType::kFp16}) {
      // Halfway between two neighbours, and the nearest fp32 values on both sides: normal, subnormal, overflowing.
      for (std::uint32_t pattern = 0; pattern < 0x7c00; pattern += kStep) {
        const std::uint32_t low = dtype == DType::kBf16 ? pattern * 0x7f80U / 0x7c00U : pattern;
        const auto read = [dtype](std::uint32_t bits) {
          return dtype == DType::kBf16 ? numeric::bf16_to_fp32(static_cast<std::uint16_t>(bits))
                                       : numeric::fp16_to_fp32(static_cast<std::uint16_t>(bits));
        };
        const float above = std::isinf(read(low + 1)) ? 2.0F * read(low) - read(low - 1) : read(low + 1);
        const float middle = read(low) + (above - read(low)) / 2.0F;
        for (const float value : {middle, std::nextafter(middle, 0.0F), std::nextafter(middle, INFINITY)}) {
          ASSERT_NO_FATAL_FAILURE(check(dtype, value));
          ASSERT_NO_FATAL_FAILURE(check(dtype, -value));
        }
      }
      for (std::uint64_t idx = 0; idx < 50'000; idx += kStep) {
        ASSERT_NO_FATAL_FAILURE(check(dtype, std::bit_cast<float>(static_cast<std::uint32_t>(mix(3, idx)))));
      }
    }
  });
}

TEST_F(RowKernels, NanOfFp32IsStoredInOneForm) {
  on_every_target([] {
    std::vector<std::uint32_t> words = {0x7f800001, 0xffc00000, 0x7fffffff, 0x3f800000, 0x7f800000, 0x00000001, 0, 1};
    auto* const row = reinterpret_cast<std::byte*>(words.data());
    scale_row(DType::kFp32, row, 1.0F, row, 32);
    EXPECT_EQ(words, (std::vector<std::uint32_t>{0x7fc00000, 0x7fc00000, 0x7fc00000, 0x3f800000, 0x7f800000, 1, 0, 1}));
  });
}

// ---- Sums -----------------------------------------------------------------------------------------------------------

/// What sum_rows must give, by the text of its contract.
std::vector<std::byte> plain_sum(const SumJob& job) {
  std::vector<std::byte> out(job.num_bytes);
  std::vector<std::int32_t> ends(job.group_ends.begin(), job.group_ends.end());
  const bool flat = ends.empty();
  if (flat) ends.push_back(static_cast<std::int32_t>(job.terms.size()));
  const auto num_elements = static_cast<std::int64_t>(job.num_bytes) / dtype_bytes(job.dtype);
  for (std::int64_t idx = 0; idx < num_elements; ++idx) {
    float total = 0.0F;
    std::size_t term = 0;
    for (const std::int32_t end : ends) {
      float group = 0.0F;
      for (; term < static_cast<std::size_t>(end); ++term) {
        const float value = reference::read_element(job.dtype, job.terms[term].row, idx);
        const float product = job.weighted ? job.terms[term].weight * value : value;
        group = group + product;
      }
      std::array<std::byte, sizeof(float)> rounded{};
      reference::write_element(job.dtype, rounded.data(), 0, group);
      total = flat ? group : total + reference::read_element(job.dtype, rounded.data(), 0);
    }
    reference::write_element(job.dtype, out.data(), idx, total);
  }
  return out;
}

// Where most of a row is ordinary, a processor may round by instructions of its own, and only what is odd is left to
// the loop that knows of it.
TEST_F(RowKernels, SumsOfBf16AreThoseOfThePlainLoopWhereFewElementsAreOdd) {
  constexpr std::size_t kNumBytes = 1040;  // some wide vectors, and an end
  constexpr std::uint64_t kRounds = kInstrumented ? 60 : 600;
  on_every_target([&] {
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::size_t num_terms = 1 + round % 9;
      std::vector<std::vector<std::byte>> rows;
      std::vector<SumTerm> terms;
      std::vector<std::int32_t> group_ends;
      for (std::size_t term = 0; term < num_terms; ++term) {
        rows.push_back(random_row(DType::kBf16, kNumBytes, mix(round, term), round % 5 == 0 ? 1'000'000 : 400));
        // One stretch is -0 in all rows, and one is so small that it is subnormal once it is weighted.
        for (std::int64_t idx = 96; idx < 128; ++idx) {
          reference::write_element(DType::kBf16, rows.back().data(), idx, -0.0F);
          reference::write_element(DType::kBf16, rows.back().data(), idx + 64, idx % 2 == 0 ? 1.5e-38F : -1.3e-38F);
        }
        terms.push_back({.row = nullptr, .weight = static_cast<float>(unit(mix(round, 100 + term)) * 2.0 - 1.0)});
        if (mix(round, 200 + term) % 3 == 0 || term + 1 == num_terms) {
          group_ends.push_back(static_cast<std::int32_t>(term + 1));
        }
      }
      for (std::size_t term = 0; term < num_terms; ++term) terms[term].row = rows[term].data();
      std::vector<std::byte> out(kNumBytes, std::byte{0xd7});
      SumJob job{.terms = terms,
                 .group_ends = round % 2 == 0 ? std::span<const std::int32_t>() : group_ends,
                 .weighted = round % 3 != 0,
                 .dtype = DType::kBf16,
                 .out = out.data(),
                 .num_bytes = kNumBytes,
                 .mode = StoreMode::kCached};
      sum_rows(job);
      ASSERT_EQ(out, plain_sum(job)) << "round " << round << ", " << num_terms << " terms";
    }
  });
}

TEST_F(RowKernels, SumsAreThoseOfThePlainLoop) {
  constexpr std::size_t kMaxTerms = 24;
  constexpr std::size_t kMaxBytes = 416;
  on_every_target([&] {
    for (std::uint64_t round = 0; round < 600; ++round) {
      const auto draw = [round](std::uint64_t what, std::uint64_t end) { return mix(round + 77, what) % end; };
      const DType dtype = kSummedTypes[draw(0, 3)];
      const std::size_t num_bytes = 16 * draw(1, kMaxBytes / 16);
      const std::size_t num_terms = draw(2, kMaxTerms + 1);
      std::vector<std::vector<std::byte>> rows;
      std::vector<SumTerm> terms;
      std::vector<std::int32_t> group_ends;
      for (std::size_t term = 0; term < num_terms; ++term) {
        rows.push_back(random_row(dtype, num_bytes, mix(round, term)));
        const std::uint64_t bits = mix(round, 100 + term);
        const float weight = bits % 13 == 0 ? odd_value(bits >> 8) : static_cast<float>(unit(bits) * 2.0 - 1.0);
        terms.push_back({.row = nullptr, .weight = weight});
        if (bits % 3 == 0 || term + 1 == num_terms) group_ends.push_back(static_cast<std::int32_t>(term + 1));
      }
      for (std::size_t term = 0; term < num_terms; ++term) terms[term].row = rows[term].data();
      alignas(64) std::byte out[kMaxBytes + 128];
      std::memset(out, 0xd7, sizeof(out));
      std::byte* const target = out + 16 * draw(3, 4);
      SumJob job{.terms = terms,
                 .group_ends = draw(4, 2) == 0 ? std::span<const std::int32_t>() : group_ends,
                 .weighted = draw(5, 2) == 0,
                 .dtype = dtype,
                 .out = target,
                 .num_bytes = num_bytes,
                 .mode = kModes[draw(6, 2)]};
      sum_rows(job);
      store_fence();
      ASSERT_EQ(std::vector<std::byte>(target, target + num_bytes), plain_sum(job))
          << "round " << round << ", " << to_string(dtype) << ", " << num_terms << " terms, " << num_bytes << " bytes";
      for (const std::byte* byte = out; byte != out + sizeof(out); ++byte) {
        const bool is_guard = byte < target || byte >= target + num_bytes;
        ASSERT_TRUE(!is_guard || *byte == std::byte{0xd7}) << "round " << round;
      }
    }
  });
}

TEST_F(RowKernels, NoTermsGiveZero) {
  on_every_target([] {
    for (const DType dtype : kSummedTypes) {
      std::vector<std::byte> out(96, std::byte{0xff});
      sum_rows({.terms = {}, .group_ends = {}, .weighted = true, .dtype = dtype, .out = out.data(), .num_bytes = 96});
      EXPECT_EQ(out, std::vector<std::byte>(96));
    }
  });
}

TEST_F(RowKernels, DotProductsHaveTheOrderOfTheContract) {
  on_every_target([] {
    for (const DType dtype : kSummedTypes) {
      for (std::size_t num_bytes = 0; num_bytes <= 512; num_bytes += 16) {
        for (std::uint64_t key = 0; key < 8; ++key) {
          std::vector<std::byte> a = random_row(dtype, num_bytes, mix(key, 1));
          std::vector<std::byte> b = random_row(dtype, num_bytes, mix(key, 2));
          std::vector<float> values_a;
          std::vector<float> values_b;
          for (std::int64_t idx = 0; idx < static_cast<std::int64_t>(num_bytes) / dtype_bytes(dtype); ++idx) {
            values_a.push_back(reference::read_element(dtype, a.data(), idx));
            values_b.push_back(reference::read_element(dtype, b.data(), idx));
          }
          const float expected = reference::dot_in_lanes(values_a, values_b);
          ASSERT_EQ(std::bit_cast<std::uint32_t>(dot_rows(dtype, a.data(), b.data(), num_bytes)),
                    std::bit_cast<std::uint32_t>(expected))
              << to_string(dtype) << ", " << num_bytes << " bytes";
        }
      }
    }
  });
}

}  // namespace
}  // namespace epistle::host
