#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

namespace epistle {
namespace {

TEST(RoutingSpec, ParsesEveryForm) {
  EXPECT_EQ(RoutingSpec::parse("uniform").kind, RoutingKind::kUniform);
  EXPECT_EQ(RoutingSpec::parse("balanced").kind, RoutingKind::kBalanced);
  EXPECT_EQ(RoutingSpec::parse("forced-random").kind, RoutingKind::kForcedRandom);
  const RoutingSpec zipf = RoutingSpec::parse("zipf:1.01");
  EXPECT_EQ(zipf.kind, RoutingKind::kZipf);
  EXPECT_EQ(zipf.parameter, 1.01);
  const RoutingSpec lognormal = RoutingSpec::parse("lognormal:0.6");
  EXPECT_EQ(lognormal.kind, RoutingKind::kLognormal);
  EXPECT_EQ(lognormal.parameter, 0.6);
  const RoutingSpec trace = RoutingSpec::parse("trace:a:b/c.jsonl.gz");
  EXPECT_EQ(trace.kind, RoutingKind::kTrace);
  EXPECT_EQ(trace.trace_path, "a:b/c.jsonl.gz");
}

TEST(RoutingSpec, TextReadsBack) {
  for (const char* text : {"uniform", "balanced", "forced-random", "zipf:0", "zipf:1", "zipf:0.30000000000000004",
                           "lognormal:1e+300", "lognormal:0.6", "trace:x.jsonl"}) {
    EXPECT_EQ(RoutingSpec::parse(text).to_string(), text);
  }
}

TEST(RoutingSpec, RejectsAndNamesTheForms) {
  for (const char* text :
       {"", "Uniform", "uniform:1", "balanced ", "zipf", "zipf:", "zipf:abc", "zipf:-1", "zipf:1x", "zipf: 1",
        "zipf:nan", "zipf:inf", "zipf:1e999", "lognormal:", "lognormal:-0.5", "trace", "trace:", "nonsense"}) {
    try {
      (void)RoutingSpec::parse(text);
      ADD_FAILURE() << "accepted '" << text << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      const std::string message = error.what();
      for (const char* form : {"uniform", "balanced", "forced-random", "zipf:A", "lognormal:S", "trace:FILE"}) {
        EXPECT_NE(message.find(form), std::string::npos) << message;
      }
    }
  }
}

}  // namespace
}  // namespace epistle
