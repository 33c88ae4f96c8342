// Configurations as they are found in repositories and in people's folders, half of them right, half with one mistake.
#include "unit/select/check_configs.hpp"

#include <algorithm>
#include <set>
#include <string>

#include <gtest/gtest.h>

namespace epistle::test {
namespace {

std::string describe_finding(const check::Finding& finding) {
  return std::string(to_string(finding.severity)) + " in line " + std::to_string(finding.line) + ", " + finding.flag +
         ", " + finding.rule + ": " + finding.message;
}

std::string describe_findings(const check::CheckReport& report) {
  std::string text;
  for (const check::Finding& finding : report.findings) text += describe_finding(finding) + "\n";
  return text;
}

TEST(CheckConfigs, NothingRightIsCalledWrong) {
  const auto configs = checked_configs("_right");
  ASSERT_GE(configs.size(), 40U);
  for (const CheckedConfig& config : configs) {
    const check::CheckReport report = check_config_case(config);
    EXPECT_EQ(report.would_run, config.get("would_run")) << config.name;
    for (const check::Finding& finding : report.findings)
      EXPECT_EQ(finding.severity, check::Severity::kInfo) << config.name << "\n" << describe_finding(finding);
  }
}

TEST(CheckConfigs, EveryPlantedMistakeIsFoundAtItsLine) {
  const auto configs = checked_configs("_wrong");
  ASSERT_GE(configs.size(), 40U);
  for (const CheckedConfig& config : configs) {
    const check::CheckReport report = check_config_case(config);
    const bool found = std::any_of(report.findings.begin(), report.findings.end(), [&](const check::Finding& finding) {
      return finding.rule == config.get("rule") && to_string(finding.severity) == config.get("severity") &&
             std::to_string(finding.line) == config.get("line") && finding.flag == config.get("flag");
    });
    EXPECT_TRUE(found) << config.name << "\n" << describe_findings(report);
    if (config.get("would_run").empty()) continue;
    EXPECT_EQ(report.would_run, config.get("would_run")) << config.name;
  }
}

TEST(CheckConfigs, NothingButThePlantedMistakeIsCalledWrong) {
  for (const CheckedConfig& config : checked_configs("_wrong")) {
    for (const check::Finding& finding : check_config_case(config).findings) {
      if (finding.severity == check::Severity::kInfo || config.allows(finding.rule)) continue;
      EXPECT_EQ(finding.rule, config.get("rule")) << config.name << "\n" << describe_finding(finding);
    }
  }
}

TEST(CheckConfigs, EveryConfigurationHasANameOfItsOwn) {
  std::set<std::string> names;
  for (const char* const part : {"_right", "_wrong"}) {
    for (const CheckedConfig& config : checked_configs(part))
      EXPECT_TRUE(names.insert(config.name).second) << config.name;
  }
}

}  // namespace
}  // namespace epistle::test
