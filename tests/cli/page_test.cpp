// epistle bench --html: the report says what the record says.
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/bench_run.hpp"
#include "support/browser.hpp"
#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

using Json = nlohmann::json;

TEST(BenchPage, ShowsTheNumbersOfTheRecord) {
  const TempDir dir;
  const CommandResult result =
      run_bench({"--chain", "2", "--html", dir.file("page.html"), "--json", dir.file("record.json")});
  if (const std::string lack = lack_of_pages(result); !lack.empty()) GTEST_SKIP() << lack;
  ASSERT_EQ(result.exit_code, 0) << result.describe();
  std::string reason;
  const auto found = open_page(dir.file("page.html"), reason);
  if (!found) GTEST_SKIP() << reason;
  expect_sound_page(*found, 5);
  const Json record = Json::parse(read_file(dir.file("record.json")));
  for (const Json& phase : record.at("results")) {
    for (const char* const field : {"median_us", "p99_us", "wire_bytes", "wire_bytes_per_s", "limit_fraction"}) {
      EXPECT_TRUE(shows_number(*found, phase.at(field).get<double>())) << field << " of " << phase.dump();
    }
  }
  for (const Json& chain : record.at("chain")) EXPECT_TRUE(shows_number(*found, chain.at("p90_us").get<double>()));
  const Json& times = found->at("light").at(0);
  EXPECT_EQ(times.at("labels").at(0), record.at("results").at(0).at("phase"));
  EXPECT_EQ(times.at("series").at(0).at("values").at(0), record.at("results").at(0).at("median_us"));
  EXPECT_EQ(found->at("record"), record);
}

TEST(BenchPage, GoesToAPlaceOfItsOwn) {
  const TempDir dir;
  const CommandResult same = run_bench({"--html", dir.file("a"), "--json", dir.file("a")});
  EXPECT_EQ(same.exit_code, 2) << same.describe();
  EXPECT_TRUE(is_error_line(same.err, "--json and --html both go to ")) << same.describe();
  const CommandResult nowhere = run_bench({"--html", dir.file("no/folder.html")});
  EXPECT_EQ(nowhere.exit_code, 5) << nowhere.describe();
  EXPECT_TRUE(run_bench({"--html", ""}).err.find("must not be empty") != std::string::npos);
}

}  // namespace
}  // namespace epistle::test
