#include "select/check/shell.hpp"

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "select/check/arithmetic.hpp"

namespace epistle::test {
namespace {

using check::ShellCommand;

std::vector<std::string> words_of(const std::string& script, std::size_t command = 0) {
  const check::ShellScript parsed = check::parse_shell(check::number_lines(script), "test.sh");
  std::vector<std::string> words;
  for (const check::LinedText& word : parsed.commands.at(command).words) words.push_back(word.bytes);
  return words;
}

using Words = std::vector<std::string>;

TEST(Shell, WordsQuotesAndContinuations) {
  EXPECT_EQ(words_of("a 'b c' \"d e\" f\\ g \\\n  h # comment\n"), (Words{"a", "b c", "d e", "f g", "h"}));
  EXPECT_EQ(words_of("a --x=\"1 2\"'3'"), (Words{"a", "--x=1 23"}));
  EXPECT_EQ(words_of("# only this\n\n  a b > out.log 2>&1 &"), (Words{"a", "b"}));
  EXPECT_EQ(words_of("a; b c", 1), (Words{"b", "c"}));
  EXPECT_EQ(words_of("cat <<EOF > x\n--not a flag\nEOF\nrun it", 1), (Words{"run", "it"}));
}

TEST(Shell, VariablesKeepTheLinesOfTheirText) {
  const std::string script = "A=\"--one 1 \\\n  --two 2\"\nrun $A\n";
  const check::ShellScript parsed = check::parse_shell(check::number_lines(script), "test.sh");
  const ShellCommand& command = parsed.commands.at(0);
  ASSERT_EQ(command.words.size(), 5U);
  EXPECT_EQ(command.words[1].bytes, "--one");
  EXPECT_EQ(command.words[1].line(), 1);
  EXPECT_EQ(command.words[3].bytes, "--two");
  EXPECT_EQ(command.words[3].line(), 2);
}

TEST(Shell, ExpandsWhatIsKnown) {
  EXPECT_EQ(words_of("X=8\nrun $X ${X} ${Y:-3} \"${X}x\""), (Words{"run", "8", "8", "3", "8x"}));
  EXPECT_EQ(words_of("A=(1 '2 3'\n 4)\nA+=(5)\nrun \"${A[@]}\""), (Words{"run", "1", "2 3", "4", "5"}));
  EXPECT_EQ(words_of("A=(1 2)\nA=(\"${A[@]}\" 3)\nC=\"x ${A[@]}\"\nrun $C"), (Words{"run", "x", "1", "2", "3"}));
  EXPECT_EQ(words_of("G=8\nN=2\nW=$(($G*$N))\nrun $W $((W + 1))"), (Words{"run", "16", "17"}));
  EXPECT_EQ(words_of("X=1\nif [ a ]; then X=2; else X=3; fi\nrun $X", 2), (Words{"run", "2"}));
  EXPECT_EQ(words_of("run ${A:-${B:-7}}"), (Words{"run", "7"}));
}

TEST(Shell, WhatOnlyARunKnowsIsNotKnown) {
  const auto known = [](const std::string& script) {
    return check::parse_shell(check::number_lines(script), "test.sh").commands.at(0).words.at(1).known;
  };
  EXPECT_FALSE(known("run $1"));
  EXPECT_FALSE(known("run $(hostname)"));
  EXPECT_FALSE(known("run `hostname`"));
  EXPECT_FALSE(known("run \"${NOWHERE}\""));
  EXPECT_FALSE(known("run $((NOWHERE*2))"));
  EXPECT_TRUE(known("run '$1'"));
}

TEST(Shell, EnvironmentIsWhatIsExportedOrStandsInFront) {
  const check::ShellScript parsed =
      check::parse_shell(check::number_lines("A=1\nexport B=2\nC=3\nexport C\nD=4 run"), "test.sh");
  std::vector<std::string> names;
  for (const auto& [name, value] : parsed.commands.at(0).environment) names.push_back(name + "=" + value.bytes);
  EXPECT_EQ(names, (Words{"B=2", "C=3", "D=4"}));
}

TEST(Shell, WhatDoesNotEndIsAnErrorWithItsLine) {
  for (const std::string script : {"a\nb 'c", "a\nb \"c", "a\nb=(c", "a\nb ${c", "a\nb `c"}) {
    try {
      static_cast<void>(check::parse_shell(check::number_lines(script), "test.sh"));
      FAIL() << script;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptInput);
      EXPECT_NE(std::string(error.what()).find("test.sh:2: "), std::string::npos) << error.what();
    }
  }
}

TEST(Shell, VariablesThatDoubleEachOtherEnd) {
  std::string script = "A=xxxxxxxxxxxxxxxx\n";
  for (int step = 0; step < 60; ++step) script += "A=\"$A$A\"\n";
  EXPECT_EQ(words_of(script + "run $A").front(), "run");
}

TEST(Arithmetic, ValuesAndWhatHasNone) {
  const auto value = [](std::string_view text) {
    return check::evaluate_arithmetic(text, [](std::string_view name) -> std::optional<std::int64_t> {
      return name == "x" ? std::optional<std::int64_t>(6) : std::nullopt;
    });
  };
  EXPECT_EQ(value("2 + 3 * (x - 1) / 5"), 5);
  EXPECT_EQ(value("$x % 4"), 2);
  EXPECT_EQ(value("-${x}"), -6);
  for (const std::string_view text : {"", "1 +", "y", "1 / 0", "9223372036854775807 + 1", "(1", "1 2", "0x"})
    EXPECT_FALSE(value(text)) << text;
  EXPECT_FALSE(value(std::string(10'000, '(')));
}

}  // namespace
}  // namespace epistle::test
