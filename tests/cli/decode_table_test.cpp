// scripts/decode-table, over records of its own.
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/python.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

Json times_json(const std::string& dispatcher, bool in_graph, double median_us) {
  return {{"dispatcher", dispatcher}, {"in_graph", in_graph}, {"median_us", median_us}, {"p99_us", median_us + 2.0049}};
}

Json make_record(int tokens, const std::string& layout, const Json& sms) {
  return {{"tool", "epistle bench"},
          {"commit", "abc"},
          {"verification", "passed"},
          {"gpu", {{"used_gpus", 2}, {"name", "Test GPU"}}},
          {"config", {{"tokens", tokens}, {"tokens_per_rank", {tokens, tokens}}, {"layout", layout}, {"sms", sms}}},
          {"chain",
           {times_json("direct", true, 30), times_json("low_latency", true, 16), times_json("low_latency", false, 18)}},
          {"replays", Json::array({times_json("low_latency", true, 17)})}};
}

class DecodeTable : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  }

  [[nodiscard]] std::string write(const std::string& name, const Json& record) const {
    return dir_.write(name, record.dump());
  }

  [[nodiscard]] static CommandResult run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), EPISTLE_SOURCE_DIR "/scripts/decode-table");
    return run_command(arguments);
  }

  static void expect_error(const std::vector<std::string>& arguments, const std::string& part) {
    const CommandResult result = run(arguments);
    EXPECT_EQ(result.exit_code, 1) << result.describe();
    EXPECT_TRUE(result.err.starts_with("error: ")) << result.describe();
    EXPECT_NE(result.err.find(part), std::string::npos) << part << result.describe();
    EXPECT_EQ(result.out, "") << result.describe();
  }

  TempDir dir_;
};

TEST_F(DecodeTable, HasARowForEachRecord) {
  const std::string big = write("a.json", make_record(128, "token_major", nullptr));
  const std::string small = write("b.json", make_record(8, "token_major", nullptr));
  const std::string limited = write("c.json", make_record(128, "expert_blocks", 16));
  const std::string output = dir_.file("decode.json");
  const CommandResult result = run({big, small, limited, "--output", output});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const auto row = [](int tokens, const std::string& layout, int sms) {
    return Json{{"tokens", tokens}, {"layout", layout},         {"sms", sms},     {"median_us", 16.0},
                {"p99_us", 18.0},   {"device", "2 x Test GPU"}, {"commit", "abc"}};
  };
  EXPECT_EQ(Json::parse(read_file(output)),
            Json::array({row(128, "expert_blocks", 16), row(8, "token_major", 0), row(128, "token_major", 0)}));
  EXPECT_EQ(run({limited, small, big, "--output", "-"}).out, read_file(output));
}

TEST_F(DecodeTable, TakesOtherDispatchersAndReplays) {
  const std::string record = write("a.json", make_record(8, "token_major", nullptr));
  const auto median_us = [&](const std::vector<std::string>& options) {
    std::vector<std::string> arguments = {record, "--output", "-"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    const CommandResult result = run(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.describe();
    return Json::parse(result.out).at(0).at("median_us").get<double>();
  };
  EXPECT_EQ(median_us({"--dispatcher", "direct"}), 30.0);
  EXPECT_EQ(median_us({"--from", "replays"}), 17.0);
}

TEST_F(DecodeTable, WrongRecordsAreErrors) {
  const Json good = make_record(8, "token_major", nullptr);
  const auto changed = [&](const std::string& key, const Json& value) {
    Json record = good;
    record[key] = value;
    return write("changed.json", record);
  };
  expect_error({changed("gpu", nullptr)}, "was measured on the host device");
  expect_error({changed("verification", "off")}, "was not verified: its verification is off");
  expect_error({changed("chain", nullptr)}, "has no chain; measure with epistle bench --chain N");
  expect_error({changed("replays", nullptr), "--from", "replays"}, "measure with epistle bench --replays N");
  expect_error({changed("chain", Json::array({times_json("direct", true, 1)}))},
               "has no chain of low_latency in a CUDA graph; it has direct");
  expect_error({changed("tool", "another")}, "is not a record of epistle bench");
  Json uneven = good;
  uneven["config"]["tokens_per_rank"] = {8, 3};
  expect_error({write("uneven.json", uneven)}, "ranks have 8, 3 tokens");
  const std::string record = write("good.json", good);
  expect_error({record, write("again.json", good)}, "are both of 8 tokens, token_major, any number of SMs");
  expect_error({dir_.write("text.json", "{")}, "is not a benchmark record");
  expect_error({write("list.json", Json::array())}, "is not a record of epistle bench");
  expect_error({dir_.file("missing.json")}, "cannot read ");
  expect_error({record, "--output", dir_.file("no/such/folder/x.json")}, "cannot write ");
}

TEST_F(DecodeTable, WrongUse) {
  expect_error({}, "give the records");
  expect_error({"--frobnicate"}, "unknown argument '--frobnicate'");
  expect_error({"a.json", "--from", "phases"}, "--from is 'phases'; it takes chain or replays");
  expect_error({"a.json", "--dispatcher"}, "--dispatcher needs a value");
  const CommandResult help = run({"--help"});
  EXPECT_EQ(help.exit_code, 0) << help.describe();
  EXPECT_NE(help.out.find("scripts/decode-table [--dispatcher NAME]"), std::string::npos) << help.out;
}

}  // namespace
}  // namespace epistle::test
