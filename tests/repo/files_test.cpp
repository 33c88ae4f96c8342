// Rules for single files: length, leftovers, whitespace, include guards, paths of one machine.
#include <algorithm>
#include <regex>

#include <gtest/gtest.h>

#include "repo/source_tree.hpp"

namespace repo_test {
namespace {

constexpr std::size_t kMaxLines = 500;            // longer only with a reason
constexpr std::size_t kMaxLinesWithReason = 800;  // never longer
constexpr std::size_t kReasonWithinLines = 15;    // where the reason must stand

bool is_code(const SourceFile& file) { return file.has_extension({".hpp", ".cpp", ".cu", ".cuh"}); }

// "// Length: <reason>" or "# Length: <reason>" near the top.
bool has_length_reason(const std::vector<std::string_view>& lines) {
  static const std::regex pattern(R"(\s*(//|#)\s*Length:\s*\S.*)");
  const std::size_t end = std::min(lines.size(), kReasonWithinLines);
  return std::any_of(lines.begin(), lines.begin() + static_cast<std::ptrdiff_t>(end),
                     [](std::string_view line) { return std::regex_match(line.begin(), line.end(), pattern); });
}

std::vector<std::string> check_length(const SourceFile& file) {
  const auto lines = file.lines();
  if (lines.size() <= kMaxLines) return {};
  const std::string length = file.path + ": " + std::to_string(lines.size()) + " lines";
  if (lines.size() > kMaxLinesWithReason) return {length + "; split it"};
  if (!has_length_reason(lines)) return {length + "; split it, or give the reason in a line `// Length: ...`"};
  return {};
}

struct LineRule {
  // One of these is in every match: the regular expression, which is slow, is tried on few lines.
  std::vector<std::string> signs;
  std::regex pattern;
  std::string_view reason;

  [[nodiscard]] bool is_broken_by(std::string_view line) const {
    const auto has = [line](const std::string& sign) { return line.find(sign) != std::string_view::npos; };
    return std::any_of(signs.begin(), signs.end(), has) && std::regex_search(line.begin(), line.end(), pattern);
  }
};

// The signs and patterns are put together from pieces, so that they do not match themselves.
const std::vector<LineRule>& line_rules() {
  const std::string has = std::string("EPISTLE_") + "HAS_";
  static const std::vector<LineRule> rules = {
      {{std::string("TO") + "DO", std::string("FIX") + "ME", std::string("XX") + "X"},
       std::regex(std::string(R"(\b(TO)") + "DO|FIX" + "ME|XX" + R"(X)\b)"),
       "unfinished work"},
      {{"home", "root", "Users"},
       std::regex(std::string(R"((^|[^A-Za-z0-9_.}/-])/)") + "(home|root|Users)" + R"((/|$|[\s"'`]))"),
       "a path of one machine"},
      {{has},
       std::regex(std::string(R"((ifn?def|defined)\s*\(?\s*)") + has + "(CUDA|NCCL)"),
       "what a build has is 0 or 1, always defined: test the value"},
  };
  return rules;
}

std::vector<std::string> check_lines(const SourceFile& file) {
  std::vector<std::string> violations;
  std::size_t line_number = 0;
  for (const std::string_view line : file.lines()) {
    ++line_number;
    const auto report = [&](std::string_view reason) {
      violations.push_back(file.path + ":" + std::to_string(line_number) + ": " + std::string(reason));
    };
    if (line.ends_with(' ') || line.ends_with('\t') || line.ends_with('\r')) report("trailing whitespace");
    for (const LineRule& rule : line_rules()) {
      if (rule.is_broken_by(line)) report(rule.reason);
    }
  }
  return violations;
}

// Runs `check` over the files that `selects` picks.
template <typename Selects, typename Check>
std::vector<std::string> check_tree(Selects selects, Check check) {
  std::vector<std::string> violations;
  for (const SourceFile& file : source_tree()) {
    if (!selects(file)) continue;
    for (std::string& violation : check(file)) violations.push_back(std::move(violation));
  }
  return violations;
}

bool any_file(const SourceFile& /*file*/) { return true; }

TEST(Files, AreShortOrSayWhyNot) {
  const auto selects = [](const SourceFile& file) { return is_code(file) || file.is_script(); };
  const auto violations = check_tree(selects, check_length);
  EXPECT_TRUE(violations.empty()) << join_lines(violations);
}

TEST(Files, HaveCleanLines) {
  const auto violations = check_tree(any_file, check_lines);
  EXPECT_TRUE(violations.empty()) << join_lines(violations);
}

TEST(Files, EndInOneNewline) {
  for (const SourceFile& file : source_tree()) {
    if (file.text.empty()) continue;
    EXPECT_TRUE(file.text.ends_with('\n')) << file.path << " does not end in a newline";
    EXPECT_FALSE(file.text.ends_with("\n\n")) << file.path << " ends in empty lines";
  }
}

TEST(Files, HeadersHavePragmaOnce) {
  for (const SourceFile& file : source_tree()) {
    // A file that Highway compiles once per instruction set must be included several times: it ends in -inl.hpp.
    if (!file.has_extension({".hpp", ".cuh"}) || file.path.ends_with("-inl.hpp")) continue;
    const auto lines = file.lines();
    EXPECT_EQ(std::count(lines.begin(), lines.end(), "#pragma once"), 1) << file.path;
  }
}

TEST(Files, ScriptsAreExecutableByTheirFirstLine) {
  for (const SourceFile& file : source_tree()) {
    if (!file.is_script() || file.has_extension({".sh"})) continue;
    EXPECT_TRUE(file.text.starts_with("#!/usr/bin/env ")) << file.path << " does not name its interpreter";
  }
}

// Objects that know nothing of CUDA serve a build with it and one without (cmake/EpistleHostObjects.cmake), which looks
// into sources, not into what they include.
TEST(Files, OneHeaderAloneLooksAtWhatABuildHas) {
  const std::string has = std::string("EPISTLE_") + "HAS_";
  const auto selects = [](const SourceFile& file) { return file.has_extension({".hpp", ".cuh"}); };
  const auto violations = check_tree(selects, [&has](const SourceFile& file) -> std::vector<std::string> {
    if (file.path == "src/dispatch/call/build_parts.hpp") return {};
    for (const std::string& part : {has + "CUDA", has + "NCCL", std::string("build_parts.hpp")}) {
      if (file.text.find(part) != std::string::npos) return {file.path + ": " + part + " belongs into a .cpp file"};
    }
    return {};
  });
  EXPECT_TRUE(violations.empty()) << join_lines(violations);
}

// The checkers themselves.

TEST(FileChecker, FindsLongFiles) {
  const auto text = [](std::size_t num_lines) { return std::string(num_lines, '\n'); };
  const std::string reason = "// Length: one table, easier to read whole\n";
  EXPECT_TRUE(check_length({.path = "src/a.cpp", .text = text(500)}).empty());
  EXPECT_EQ(check_length({.path = "src/a.cpp", .text = text(501)}).size(), 1U);
  EXPECT_TRUE(check_length({.path = "src/a.cpp", .text = reason + text(600)}).empty());
  EXPECT_EQ(check_length({.path = "src/a.cpp", .text = "// Length:\n" + text(600)}).size(), 1U);
  EXPECT_EQ(check_length({.path = "src/a.cpp", .text = text(20) + reason + text(600)}).size(), 1U);
  EXPECT_EQ(check_length({.path = "src/a.cpp", .text = reason + text(800)}).size(), 1U);
}

TEST(FileChecker, FindsUncleanLines) {
  const auto count = [](const std::string& text) { return check_lines({.path = "src/a.cpp", .text = text}).size(); };
  EXPECT_EQ(count("int a;\n// a toDo list, XXXL\n"), 0U);
  EXPECT_EQ(count("int a; \n"), 1U);
  EXPECT_EQ(count("int a;\r\n"), 1U);
  EXPECT_EQ(count(std::string("// TO") + "DO: later\n"), 1U);
  EXPECT_EQ(count(std::string("// FIX") + "ME\n"), 1U);
  EXPECT_EQ(count(std::string("open(\"/ho") + "me/someone/file\");\n"), 1U);
  EXPECT_EQ(count(std::string("cd /ro") + "ot\n"), 1U);
  EXPECT_EQ(count(std::string("#ifdef EPISTLE_") + "HAS_CUDA\n"), 1U);
  EXPECT_EQ(count(std::string("#if !defined(EPISTLE_") + "HAS_NCCL)\n"), 1U);
  EXPECT_EQ(count(std::string("#if EPISTLE_") + "HAS_CUDA\n"), 0U);
  EXPECT_EQ(count("see https://example.org/home/page and src/root/a.cpp\n"), 0U);
}

}  // namespace
}  // namespace repo_test
