// epistle compare: dispatchers in turns, stored records, and what it makes of broken ones.
#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "support/browser.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using Record = nlohmann::ordered_json;

std::vector<std::string> compare_arguments(const std::vector<std::string>& options) {
  std::vector<std::string> arguments = {"compare", "--hidden", "64",       "--experts", "12",      "--top-k", "3",
                                        "--iters", "8",        "--warmup", "1",         "--chain", "3"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

Record compare_record(const std::vector<std::string>& options) {
  std::vector<std::string> all = options;
  all.insert(all.end(), {"--json", "-"});
  const CommandResult result = run_epistle(compare_arguments(all));
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  return Record::parse(result.out, nullptr, false);
}

TEST(Compare, MeasuresInTurnsByTheSameRouting) {
  const Record record = compare_record({"--tokens", "20", "--dispatcher", "direct,alltoall,low_latency"});
  EXPECT_EQ(record.at("tool"), "epistle compare");
  EXPECT_EQ(record.at("verification"), "passed");
  EXPECT_EQ(record.at("routing_hash").get<std::string>().size(), 16U);
  EXPECT_EQ(record.at("stack").at("routing").at("hash"), record.at("routing_hash"));
  for (const char* const part : {"versions", "devices", "routing", "shape", "method", "environment"}) {
    EXPECT_TRUE(record.at("stack").contains(part)) << part;
  }
  ASSERT_EQ(record.at("dispatchers").size(), 3U);
  for (const Record& entry : record.at("dispatchers")) {
    EXPECT_EQ(entry.at("status"), "measured");
    EXPECT_EQ(entry.at("period_us").at("samples").size(), 8U);
    EXPECT_LE(entry.at("period_us").at("p50"), entry.at("period_us").at("p95"));
    EXPECT_GT(entry.at("memory").at("bytes"), 0);
    EXPECT_EQ(entry.at("memory").at("as_predicted"), true);
  }
  EXPECT_EQ(record.at("results").size(), 12U);
  ASSERT_EQ(record.at("comparisons").size(), 2U);
  EXPECT_EQ(record.at("comparisons").at(0).at("against"), "direct");
  EXPECT_EQ(record.at("comparisons").at(0).at("paired"), true);
}

TEST(Compare, HashTellsRoutingsApart) {
  const auto hash = [](const std::string& seed) {
    return compare_record({"--tokens", "20", "--dispatcher", "direct", "--seed", seed}).at("routing_hash");
  };
  EXPECT_EQ(hash("1"), hash("1"));
  EXPECT_NE(hash("1"), hash("2"));
}

TEST(Compare, RunsOnProcesses) {
  const Record record = compare_record({"--tokens", "20,7", "--group", "processes", "--baseline", "alltoall"});
  EXPECT_EQ(record.at("dispatchers").size(), 4U);
  EXPECT_EQ(record.at("comparisons").at(0).at("against"), "alltoall");
}

TEST(Compare, GivesWhatCannotServeItsReason) {
  const CommandResult result =
      run_epistle(compare_arguments({"--tokens", "5000", "--dispatcher", "direct,low_latency", "--sizing", "capacity",
                                     "--capacity-rows", "40000", "--json", "-"}));
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Record record = Record::parse(result.out);
  for (const Record& entry : record.at("dispatchers")) {
    if (entry.at("status") == "measured") continue;
    EXPECT_FALSE(entry.at("reason").get<std::string>().empty());
    EXPECT_FALSE(entry.contains("period_us"));
  }
}

TEST(Compare, RefusesWhatItDoesNotKnow) {
  const auto refused = [](const std::vector<std::string>& options, const std::string& part) {
    const CommandResult result = run_epistle(compare_arguments(options));
    EXPECT_EQ(result.exit_code, 2) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, part)) << result.describe();
  };
  refused({"--dispatcher", "deepeep"}, "--dispatcher names 'deepeep'; there are direct, ");
  refused({"--dispatcher", "direct", "--baseline", "alltoall"}, "--baseline alltoall is none of --dispatcher direct");
  refused({"--graph"}, "--graph belongs to --device cuda");
  refused({"--allow-different-stacks"}, "belongs to FILEs");
  refused({"a.json", "b.json"}, "belongs to a run; with FILEs there is none");
  const CommandResult alone = run_epistle({"compare", "a.json"});
  EXPECT_TRUE(is_error_line(alone.err, "a.json alone is nothing to compare")) << alone.describe();
}

// ---- Stored records -------------------------------------------------------------------------------------------------

class StoredRecords : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { record() = compare_record({"--tokens", "20", "--dispatcher", "direct,alltoall"}); }
  static Record& record() {
    static Record instance;
    return instance;
  }
  static CommandResult compare(const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {"compare"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_epistle(all);
  }
  [[nodiscard]] std::string write(const std::string& name, const Record& document) const {
    return dir_.write(name, document.dump());
  }

  TempDir dir_;
};

TEST_F(StoredRecords, OfOneStackAreCompared) {
  Record slower = record();
  for (Record& entry : slower["dispatchers"]) {
    for (Record& sample : entry["period_us"]["samples"]) sample = sample.get<double>() * 100;
  }
  slower["commit"] = "another";
  slower["date"] = "2030-01-01T00:00:00Z";
  const CommandResult result = compare({write("a.json", record()), write("b.json", slower), "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  const Record document = Record::parse(result.out);
  EXPECT_EQ(document.at("dispatchers").size(), 4U);
  ASSERT_EQ(document.at("comparisons").size(), 3U);
  const Record& last = document.at("comparisons").at(2);
  EXPECT_EQ(last.at("dispatcher"), "b: alltoall");
  EXPECT_EQ(last.at("against"), "a: alltoall");
  EXPECT_EQ(last.at("paired"), false);
  EXPECT_EQ(last.at("verdict"), "slower");
  EXPECT_NEAR(last.at("ratio").get<double>(), 100.0, 1e-6);
}

TEST_F(StoredRecords, OfDifferentStacksAreRefused) {
  Record other = record();
  other["stack"]["versions"]["compiler"] = "another one";
  other["stack"]["devices"].erase("cores");
  const std::string a = write("a.json", record());
  const std::string b = write("b.json", other);
  const CommandResult refused = compare({a, b});
  EXPECT_EQ(refused.exit_code, 2) << refused.describe();
  EXPECT_TRUE(is_error_line(refused.err, "versions.compiler is ")) << refused.describe();
  EXPECT_NE(refused.err.find("devices.cores is "), std::string::npos) << refused.describe();
  EXPECT_NE(refused.err.find("not there in "), std::string::npos) << refused.describe();
  const CommandResult shown = compare({a, b, "--allow-different-stacks"});
  EXPECT_EQ(shown.exit_code, 0) << shown.describe();
  EXPECT_NE(shown.out.find("different stacks: versions.compiler is "), std::string::npos) << shown.describe();
  EXPECT_EQ(shown.out.find("slower"), std::string::npos) << shown.describe();
  EXPECT_EQ(shown.out.find("faster"), std::string::npos) << shown.describe();
}

TEST_F(StoredRecords, ThatAreWrongAreErrorsWithFileAndField) {
  const std::string good = write("good.json", record());
  const auto refused = [&](const Record& document, const std::string& part) {
    const CommandResult result = compare({good, write("bad.json", document)});
    EXPECT_EQ(result.exit_code, 3) << result.describe();
    EXPECT_TRUE(is_error_line(result.err, "bad.json: field " + part)) << result.describe();
  };
  Record bad = record();
  bad["tool"] = "epistle bench";
  refused(bad, "tool is 'epistle bench', not 'epistle compare'");
  bad = record();
  bad["dispatchers"][1]["period_us"]["samples"][2] = "fast";
  refused(bad, R"(dispatchers[1].period_us.samples[2] is "fast", not a number)");
  bad = record();
  bad["dispatchers"][0]["period_us"]["samples"] = Record::array();
  refused(bad, "dispatchers[0].period_us.samples is empty");
  bad = record();
  bad["dispatchers"][1]["dispatcher"] = "direct";
  refused(bad, "dispatchers[1].dispatcher repeats 'direct'");
  bad = record();
  bad["verified"] = false;
  bad["verification"] = "failed";
  refused(bad, "verified is false");
  const CommandResult twice = compare({good, good});
  EXPECT_TRUE(is_error_line(twice.err, "is given twice")) << twice.describe();
  const CommandResult missing = compare({good, dir_.file("none.json")});
  EXPECT_EQ(missing.exit_code, 3) << missing.describe();
}

/// Any value of a document becomes another one.
void spoil(Record& document, std::mt19937& random) {
  const auto draw = [&](std::size_t end) { return std::uniform_int_distribution<std::size_t>(0, end - 1)(random); };
  const std::vector<Record> values = {nullptr, true, -1, 1e300, "", "\xff<b>", Record::array(), Record::object(), 0};
  Record* at = &document;
  while (at->is_structured() && !at->empty() && draw(5) > 0) {
    auto item = at->begin();
    std::advance(item, static_cast<std::ptrdiff_t>(draw(at->size())));
    at = &*item;
  }
  *at = values[draw(values.size())];
}

TEST_F(StoredRecords, NeverCrashIt) {
  constexpr int kTrials = 150;
  const std::string good = write("good.json", record());
  const std::string text = record().dump();
  std::mt19937 random(7);
  for (int trial = 0; trial < kTrials; ++trial) {
    Record document = record();
    std::string content;
    if (trial % 3 == 0) {  // bytes
      content = text;
      for (int change = 0; change < 3; ++change) {
        content[std::uniform_int_distribution<std::size_t>(0, content.size() - 1)(random)] =
            static_cast<char>(std::uniform_int_distribution<int>(0, 255)(random));
      }
      if (trial % 2 == 0) content.resize(content.size() / 2);
    } else {
      spoil(document, random);
      content = document.dump(-1, ' ', false, Record::error_handler_t::replace);
    }
    const CommandResult result = compare({good, dir_.write("bad.json", content), "--allow-different-stacks"});
    EXPECT_EQ(result.signal, 0) << content;
    EXPECT_TRUE(result.exit_code == 0 || result.exit_code == 3) << result.describe() << content;
    EXPECT_TRUE(result.exit_code == 0 || is_error_line(result.err, "bad.json")) << result.describe();
  }
}

TEST_F(StoredRecords, AreShownInABrowser) {
  const CommandResult result = compare({write("a.json", record()), write("b.json", record()), "--html",
                                        dir_.file("page.html"), "--json", dir_.file("both.json")});
  if (const std::string lack = lack_of_pages(result); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  std::string reason;
  const auto found = open_page(dir_.file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 5);
  const Record document = Record::parse(read_file(dir_.file("both.json")));
  EXPECT_EQ(found->at("record"), nlohmann::json::parse(document.dump()));
  for (const Record& entry : document.at("dispatchers")) {
    for (const char* const field : {"p50", "p90", "p95", "p99"}) {
      EXPECT_TRUE(shows_number(*found, entry.at("period_us").at(field).get<double>())) << field;
    }
  }
}

}  // namespace
}  // namespace epistle::test
