// Every numeric option of every command at its limits: a number is taken as it was typed, or refused in one line that
// names the option and what it takes.
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "cli/bench_run.hpp"

namespace epistle::test {
namespace {

constexpr std::int64_t kMaxInt32 = 2147483647;

// Neither plain digits nor a number of 64 bits; refused by whole numbers and by others.
const std::vector<std::string> kNoNumbers = {"",   " ",   "-",   "+5",   " 5",    "5 ", "0x10",
                                             "5x", "nan", "inf", "-inf", "1e400", "--5"};
// Other numbers than whole ones, and whole ones that wrap round in 64 or 32 bits.
const std::vector<std::string> kNoWholeNumbers = {
    "1.5", "1e3", "9223372036854775808", "18446744073709551616", "18446744073709551626", "-18446744073709551606", "1,"};

/// An option of a command that says whether it takes a number without doing much.
struct NumericOption {
  std::string option;
  std::vector<std::string> before;
  std::vector<std::string> behind;
};

CommandResult give(const NumericOption& numeric, const std::string& value) {
  std::vector<std::string> arguments = numeric.before;
  arguments.push_back(numeric.option);
  arguments.push_back(value);
  arguments.insert(arguments.end(), numeric.behind.begin(), numeric.behind.end());
  return run_epistle(arguments);
}

void expect_taken(const NumericOption& numeric, const std::string& value) {
  const CommandResult result = give(numeric, value);
  EXPECT_NE(result.exit_code, 2) << numeric.option << " '" << value << "'" << result.describe();
  EXPECT_EQ(result.signal, 0) << numeric.option << " '" << value << "'";
}

void expect_refused(const NumericOption& numeric, const std::string& value) {
  const CommandResult result = give(numeric, value);
  EXPECT_EQ(result.exit_code, 2) << numeric.option << " '" << value << "'" << result.describe();
  const std::string name = numeric.option == "-n" ? "--ranks" : numeric.option;
  EXPECT_TRUE(is_error_line(result.err, name + " is '" + value + "'; it takes ")) << result.describe();
}

NumericOption of_bench(const std::string& option) { return {option, {"bench", "--list"}, {}}; }
NumericOption of_run(const std::string& option) {
  if (option == "-n") return {option, {"run"}, {"--", "/no/such/program"}};
  return {option, {"run", "-n", "1"}, {"--", "true"}};
}

class Numbers : public ::testing::Test {
 protected:
  [[nodiscard]] NumericOption of_trace(const std::string& option) const { return {option, {"trace", trace_}, {}}; }

 private:
  TempDir dir_;
  std::string trace_ =
      dir_.write("t.jsonl", R"({"layer":3,"num_experts":2,"top_k":1,"num_tokens":1,"expert_ids":[[0]]})");
};

TEST_F(Numbers, WholeNumbersAtTheirLimits) {
  struct Row {
    NumericOption numeric;
    std::int64_t min;
    std::int64_t max;
  };
  const std::vector<Row> rows = {{of_bench("--ranks"), 1, 1024},
                                 {of_bench("--hidden"), 1, 1 << 24},
                                 {of_bench("--experts"), 1, 1 << 20},
                                 {of_bench("--top-k"), 1, 1 << 20},
                                 {of_bench("--tokens"), 0, 1 << 28},
                                 {of_bench("--alignment"), 1, 1024},
                                 {of_bench("--capacity-rows"), 1, kMaxInt32},
                                 {of_bench("--layer"), 0, kMaxInt32},
                                 {of_bench("--workers"), 1, 1024},
                                 {of_bench("--sms"), 1, 1024},
                                 {of_bench("--runs"), 1, 1000},
                                 {of_bench("--iters"), 1, 1'000'000},
                                 {of_bench("--warmup"), 0, 1'000'000},
                                 {of_bench("--seed"), 0, std::int64_t{0x7fffffffffffffff}},
                                 {of_trace("--layer"), 0, kMaxInt32},
                                 {of_trace("--top"), 1, kMaxInt32},
                                 {of_run("-n"), 1, 1024}};
  for (const auto& [numeric, min, max] : rows) {
    SCOPED_TRACE(numeric.before.front());
    expect_taken(numeric, std::to_string(min));
    expect_taken(numeric, std::to_string(max));
    expect_taken(numeric, "010");
    expect_refused(numeric, std::to_string(min - 1));
    expect_refused(numeric, std::to_string(static_cast<std::uint64_t>(max) + 1));
    if (max <= kMaxInt32) expect_refused(numeric, "4294967306");  // 10 in 32 bits
    for (const std::string& value : kNoNumbers) expect_refused(numeric, value);
    for (const std::string& value : kNoWholeNumbers) expect_refused(numeric, value);
  }
}

TEST_F(Numbers, OtherNumbersAtTheirLimits) {
  struct Row {
    NumericOption numeric;
    std::vector<std::string> taken;
    std::vector<std::string> refused;
  };
  const std::vector<Row> rows = {
      {of_bench("--drop-capacity"), {"0.000001", "1e6", "1.5", "010"}, {"0", "1e-7", "1000001", "-1"}},
      {of_bench("--tokens-spread"), {"0", "0.5", "1e-3", "0.9999999999999999"}, {"-0.1", "1", "1.5", "-1"}},
      {of_run("--grace"), {"0", "86400", "1.5", "010"}, {"-1", "86400.1", "1e9"}}};
  for (const auto& [numeric, taken, refused] : rows) {
    for (const std::string& value : taken) expect_taken(numeric, value);
    for (const std::string& value : refused) expect_refused(numeric, value);
    for (const std::string& value : kNoNumbers) expect_refused(numeric, value);
  }
}

TEST_F(Numbers, ListsOfTokens) {
  const NumericOption tokens = of_bench("--tokens");
  for (const char* const value : {"1,2,3", "0,0", "268435456,0"}) expect_taken(tokens, value);
  for (const char* const value : {",", ",1", "1,", "1,,2", "1;2", "1, 2", "1,-1", "1,268435457", "1,nan", "[1,2]"}) {
    expect_refused(tokens, value);
  }
}

TEST(NumberValues, AreThoseThatWereTyped) {
  const auto config =
      bench_json({"--seed", "9223372036854775807", "--workers", "02", "--layout", "expert_major", "--alignment", "010"})
          .at("config");
  EXPECT_EQ(config.at("seed"), std::uint64_t{0x7fffffffffffffff});
  EXPECT_EQ(config.at("workers"), 2);
  EXPECT_EQ(config.at("alignment"), 10);
}

TEST(NumberValues, AbsurdExpertsAreNoMatterOfTokens) {
  const CommandResult result = run_epistle({"bench", "--experts", "2147483647"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(is_error_line(result.err, "--experts is '2147483647'; it takes a whole number from 1 to 1048576"))
      << result.err;
}

}  // namespace
}  // namespace epistle::test
