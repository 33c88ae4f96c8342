// RapidCheck properties with a number of cases of their own; RC_GTEST_PROP takes it from the environment only.
#pragma once

#include <sstream>
#include <utility>

#include <rapidcheck.h>

#include <gtest/gtest.h>

namespace epistle::testing {

/// Checks `property` on `num_cases` random cases, as the test that calls it. RC_PARAMS (seed, max_size) still counts.
template <typename Property>
void check_property(int num_cases, Property&& property) {
  const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
  rc::detail::TestMetadata metadata;
  metadata.id = std::string(test->test_suite_name()) + "/" + test->name();
  metadata.description = test->name();
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = num_cases;
  const auto result = rc::detail::checkTestable(std::forward<Property>(property), metadata, params);
  if (result.template is<rc::detail::SuccessResult>()) return;
  std::ostringstream text;
  rc::detail::printResultMessage(result, text);
  FAIL() << text.str();
}

}  // namespace epistle::testing
