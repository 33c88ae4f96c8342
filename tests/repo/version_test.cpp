// One version: the changelog's newest release is the one that CMake builds.
#include "epistle/version.hpp"

#include <regex>
#include <string>

#include <gtest/gtest.h>

#include "repo/source_tree.hpp"

namespace repo_test {
namespace {

std::string first_match(const std::string& text, const std::string& pattern) {
  std::smatch match;
  return std::regex_search(text, match, std::regex(pattern, std::regex::multiline)) ? match[1].str() : std::string();
}

TEST(Version, IsTheSameInCMakeHeaderAndChangelog) {
  const std::string cmake = first_match(read_source("CMakeLists.txt"), R"(^project\(epistle VERSION ([0-9.]+))");
  const std::string changelog = first_match(read_source("CHANGELOG.md"), R"(^## \[([0-9]+\.[0-9]+\.[0-9]+)\])");
  EXPECT_FALSE(cmake.empty());
  EXPECT_EQ(changelog, cmake);
  EXPECT_EQ(EPISTLE_VERSION_STRING, cmake);
}

TEST(Version, HeaderNumbersAgree) {
  const std::string numbers = std::to_string(epistle::kVersionMajor) + "." + std::to_string(epistle::kVersionMinor) +
                              "." + std::to_string(epistle::kVersionPatch);
  EXPECT_EQ(EPISTLE_VERSION_STRING, numbers);
  EXPECT_EQ(EPISTLE_VERSION, epistle::kVersionMajor * 10000 + epistle::kVersionMinor * 100 + epistle::kVersionPatch);
  EXPECT_EQ(EPISTLE_VERSION, epistle::library_version());
}

}  // namespace
}  // namespace repo_test
