// The scalar conversions against facts that were not computed by them.
#include "core/numeric.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "support/scenario.hpp"

namespace epistle::numeric {
namespace {

using epistle::testing::mix;

struct Pair {
  float value;
  std::uint16_t bits;
};

TEST(Numeric, KnownBf16Values) {
  constexpr Pair kPairs[] = {{0.0F, 0x0000},      {-0.0F, 0x8000},     {1.0F, 0x3f80},        {-2.0F, 0xc000},
                             {0.5F, 0x3f00},      {256.0F, 0x4380},    {3.140625F, 0x4049},   {INFINITY, 0x7f80},
                             {-INFINITY, 0xff80}, {0x1p-133F, 0x0001}, {0x1.fep127F, 0x7f7f}, {0x1p-126F, 0x0080}};
  for (const Pair& pair : kPairs) {
    EXPECT_EQ(fp32_to_bf16(pair.value), pair.bits) << pair.value;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(bf16_to_fp32(pair.bits)), std::bit_cast<std::uint32_t>(pair.value));
  }
  EXPECT_EQ(fp32_to_bf16(3.14159265F), 0x4049);
  EXPECT_EQ(fp32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);  // rounds up to infinity
}

TEST(Numeric, KnownFp16Values) {
  constexpr Pair kPairs[] = {{0.0F, 0x0000},     {-0.0F, 0x8000},     {1.0F, 0x3c00},           {-2.0F, 0xc000},
                             {65504.0F, 0x7bff}, {0x1p-14F, 0x0400},  {0x1p-24F, 0x0001},       {0x1.ff8p-15F, 0x03ff},
                             {INFINITY, 0x7c00}, {-INFINITY, 0xfc00}, {0.333251953125F, 0x3555}};
  for (const Pair& pair : kPairs) {
    EXPECT_EQ(fp32_to_fp16(pair.value), pair.bits) << pair.value;
    EXPECT_EQ(std::bit_cast<std::uint32_t>(fp16_to_fp32(pair.bits)), std::bit_cast<std::uint32_t>(pair.value));
  }
  EXPECT_EQ(fp32_to_fp16(1.0F / 3.0F), 0x3555);
  EXPECT_EQ(fp32_to_fp16(65519.99F), 0x7bff);
  EXPECT_EQ(fp32_to_fp16(65520.0F), 0x7c00);  // halfway to 2^16: to even, which is infinity
  EXPECT_EQ(fp32_to_fp16(0x1p-25F), 0x0000);  // halfway between 0 and the smallest subnormal
  EXPECT_EQ(fp32_to_fp16(0x1.000002p-25F), 0x0001);
  EXPECT_EQ(fp32_to_fp16(0x1.8p-24F), 0x0002);  // 1.5 steps: to even
}

TEST(Numeric, KnownFp8Values) {
  constexpr struct {
    std::uint8_t bits;
    float value;
  } kPairs[] = {{0x00, 0.0F},    {0x80, -0.0F},     {0x38, 1.0F},    {0xc0, -2.0F},  {0x7e, 448.0F},
                {0x01, 0x1p-9F}, {0x07, 0x1.cp-7F}, {0x08, 0x1p-6F}, {0x3f, 1.875F}, {0xfe, -448.0F}};
  for (const auto& pair : kPairs) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(fp8_e4m3_to_fp32(pair.bits)), std::bit_cast<std::uint32_t>(pair.value));
  }
  EXPECT_TRUE(std::isnan(fp8_e4m3_to_fp32(0x7f)));
  EXPECT_TRUE(std::isnan(fp8_e4m3_to_fp32(0xff)));
  for (std::uint8_t bits = 0; bits < 0x7e; ++bits) {
    EXPECT_LT(fp8_e4m3_to_fp32(bits), fp8_e4m3_to_fp32(static_cast<std::uint8_t>(bits + 1)));
  }
}

TEST(Numeric, EveryPatternComesBack) {
  for (std::uint32_t idx = 0; idx < 65536; ++idx) {
    const auto bits = static_cast<std::uint16_t>(idx);
    const bool is_bf16_nan = (bits & 0x7fff) > 0x7f80;
    const bool is_fp16_nan = (bits & 0x7fff) > 0x7c00;
    EXPECT_EQ(std::isnan(bf16_to_fp32(bits)), is_bf16_nan);
    EXPECT_EQ(std::isnan(fp16_to_fp32(bits)), is_fp16_nan);
    EXPECT_EQ(fp32_to_bf16(bf16_to_fp32(bits)), is_bf16_nan ? 0x7fc0 : bits);
    EXPECT_EQ(fp32_to_fp16(fp16_to_fp32(bits)), is_fp16_nan ? 0x7e00 : bits);
  }
}

TEST(Numeric, Bf16TiesGoToEven) {
  for (std::uint32_t low = 0; low < 0x7f80; ++low) {
    const float tie = std::bit_cast<float>((low << 16) | 0x8000U);
    const std::uint32_t even = low % 2 == 0 ? low : low + 1;
    EXPECT_EQ(fp32_to_bf16(tie), even);
    EXPECT_EQ(fp32_to_bf16(-tie), even | 0x8000U);
    EXPECT_EQ(fp32_to_bf16(std::nextafter(tie, 0.0F)), low);
    EXPECT_EQ(fp32_to_bf16(std::nextafter(tie, INFINITY)), low + 1);
  }
}

TEST(Numeric, NansTakeOneForm) {
  for (const std::uint32_t bits : {0x7f800001U, 0x7fffffffU, 0xffc00000U, 0xff812345U}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_EQ(fp32_to_bf16(nan), 0x7fc0);
    EXPECT_EQ(fp32_to_fp16(nan), 0x7e00);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(canonical_fp32(nan)), 0x7fc00000U);
  }
  EXPECT_EQ(std::bit_cast<std::uint32_t>(canonical_fp32(-0.0F)), 0x80000000U);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) std::uint16_t fp16_of_processor(float value) {
  const __m128i bits = _mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT);
  return static_cast<std::uint16_t>(_mm_cvtsi128_si32(bits));
}
__attribute__((target("f16c"))) float fp32_of_processor(std::uint16_t bits) { return _cvtsh_ss(bits); }

TEST(Numeric, Fp16AgreesWithTheProcessor) {
  // Every processor with AVX2 converts fp16; clang 14 does not know the name of that feature.
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this processor has no fp16 conversions";
  const auto expect_same = [](float value) {
    if (std::isnan(value)) return;
    ASSERT_EQ(fp32_to_fp16(value), fp16_of_processor(value)) << std::hexfloat << value;
  };
  for (std::uint64_t idx = 0; idx < 1'000'000; ++idx) {
    ASSERT_NO_FATAL_FAILURE(expect_same(std::bit_cast<float>(static_cast<std::uint32_t>(mix(11, idx)))));
  }
  for (std::uint32_t idx = 0; idx < 0x7c00; ++idx) {
    const float low = fp32_of_processor(static_cast<std::uint16_t>(idx));
    ASSERT_EQ(fp16_to_fp32(static_cast<std::uint16_t>(idx)), low);
    const float high = idx + 1 == 0x7c00 ? 65536.0F : fp32_of_processor(static_cast<std::uint16_t>(idx + 1));
    const float tie = low + (high - low) / 2.0F;
    for (const float value : {tie, std::nextafter(tie, 0.0F), std::nextafter(tie, INFINITY)}) {
      ASSERT_NO_FATAL_FAILURE(expect_same(value));
      ASSERT_NO_FATAL_FAILURE(expect_same(-value));
    }
  }
}
#endif

}  // namespace
}  // namespace epistle::numeric
