#include "cost/fit/calibration.hpp"

#include <cmath>
#include <string>
#include <string_view>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "cost/fit/bench_record.hpp"
#include "cost/fit/families.hpp"
#include "cost/fit/least_squares.hpp"

namespace epistle::test {
namespace {

constexpr const char* kLowLatencyHeader =
    "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,dispatch_us,combine_us\n";

/// A table of times that a curve of known constants gives, off by a few percent in a fixed pattern.
std::string made_table(const std::vector<int>& degrees) {
  std::string text = kLowLatencyHeader;
  int line = 0;
  for (const int degree : degrees) {
    for (const int tokens : {1, 8, 32, 64, 128, 256}) {
      const double cross = degree > 8 ? 1.0 : 0.0;
      const double bytes = tokens * 8 * 7408.0;
      const double domains = std::max(degree / 8, 1);
      const double us =
          12 + 6 * cross + 4 * std::log2(domains) + bytes / domains / 300e3 + bytes * (1 - 1 / domains) / 48e3;
      const double noise = 1 + 0.02 * std::sin(13.0 * ++line);
      text += "h100_sxm,1," + std::to_string(degree) + ",1,7168,8,256," + std::to_string(tokens) + "," +
              std::to_string(us * noise) + "," + std::to_string(1.5 * us * noise) + "\n";
    }
  }
  return text;
}

std::string table_error(const std::string& text) {
  try {
    (void)parse_measurements(text, "t.csv");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruptInput);
    return std::string(error.message());
  }
  return "";
}

TEST(LeastSquares, FindsConstantsInSpiteOfAnOutlier) {
  // y = a + b x
  const std::vector<double> xs = {1, 2, 4, 8, 16, 32, 64, 128};
  std::vector<double> log_us;
  for (const double x : xs) log_us.push_back(std::log(20 + 3 * x));
  log_us[3] += 2;
  const std::vector<LogPrior> priors(2, {.log_mean = std::log(5.0), .log_sigma = 2});
  const FitResult fit = fit_constants(
      [&](std::size_t row, std::span<const double> values) {
        return std::log(std::exp(values[0]) + std::exp(values[1]) * xs[row]);
      },
      log_us, priors, 0.05);
  EXPECT_NEAR(std::exp(fit.log_values[0]), 20, 1.5);
  EXPECT_NEAR(std::exp(fit.log_values[1]), 3, 0.2);
  EXPECT_LT(fit.log_sigmas[0], 0.2);
}

TEST(LeastSquares, WhatDataDoNotTellStaysAtThePrior) {
  const std::vector<double> log_us = {std::log(7.0)};
  const std::vector<LogPrior> priors = {{.log_mean = std::log(7.0), .log_sigma = 1},
                                        {.log_mean = std::log(3.0), .log_sigma = 0.5}};
  const FitResult fit =
      fit_constants([](std::size_t, std::span<const double> values) { return values[0]; }, log_us, priors, 0.05);
  EXPECT_NEAR(std::exp(fit.log_values[1]), 3.0, 1e-6);
  EXPECT_NEAR(fit.log_sigmas[1], 0.5, 1e-6);
}

TEST(Calibration, PredictsADegreeItHasNotSeen) {
  const MeasurementTable fit = parse_measurements(made_table({8, 16, 64}), "fit.csv");
  const MeasurementTable other = parse_measurements(made_table({32}), "other.csv");
  EXPECT_EQ(fit.num_rows, 18U);
  const Calibration calibration({&fit, 1});
  const TableErrors errors = evaluate(calibration, other);
  EXPECT_EQ(errors.table, "other");
  EXPECT_EQ(errors.num_rows, 6U);
  EXPECT_EQ(errors.num_times, 12U);
  EXPECT_LT(errors.median_ape, 5.0);
  EXPECT_GE(errors.coverage_90, 0.75);
  EXPECT_TRUE(errors.without_measurements.empty());
  const TableErrors seen = evaluate(calibration, fit);
  EXPECT_LT(seen.median_ape, 3.0);
}

TEST(Calibration, SaysWhichConstantsItCannotTell) {
  const MeasurementTable inside = parse_measurements(made_table({8}), "inside.csv");
  const Calibration calibration({&inside, 1});
  const auto identified = [&](std::string_view name) {
    for (const ConstantFit& constant : calibration.curves().at("low_latency dispatch").constants()) {
      if (constant.name == name) return constant.identified;
    }
    ADD_FAILURE() << name;
    return false;
  };
  EXPECT_TRUE(identified("start_us"));
  EXPECT_TRUE(identified("link_efficiency"));
  // Inside a domain nothing is known of the network.
  EXPECT_FALSE(identified("network_us"));
  EXPECT_FALSE(identified("network_efficiency"));
  EXPECT_FALSE(calibration.is_measured("gemm bf16"));
}

TEST(Calibration, WeighsWhatOneRelativeShowsAgainstThePrior) {
  // A GPU whose links are used half as well again as the prior says tells something of another GPU, and not all.
  constexpr double kShare = 0.85;
  const auto us_of = [](double tokens, double ranks, double bytes_per_us) {
    return 12 + tokens * 8 * 2 * 7168 * (1 - 1 / ranks) / (kShare * bytes_per_us);
  };
  std::string text = "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,combine_us\n";
  for (const int tokens : {1, 8, 64, 256, 512, 1024}) {
    text += "gb200,1,4,1,7168,8,256," + std::to_string(tokens) + "," + std::to_string(us_of(tokens, 4, 900e3)) + "\n";
  }
  const MeasurementTable relative = parse_measurements(text, "relative.csv");
  const MeasurementTable wanted = parse_measurements(
      "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,combine_us\n"
      "h100_sxm,1,8,1,7168,8,256,1024,500\n",
      "wanted.csv");
  const auto forecast_us = [&](const Calibration& calibration) {
    return calibration.predict(wanted.times[0].curve, wanted.times[0].observation).us;
  };
  const double prior_us = forecast_us(Calibration({}));
  const double us = forecast_us(Calibration({&relative, 1}));
  EXPECT_LT(us, 0.95 * prior_us);
  EXPECT_GT(us, 1.1 * us_of(1024, 8, 450e3));
}

TEST(Calibration, ACombinationOfSeenValuesIsSurerThanANewOne) {
  const MeasurementTable fit = parse_measurements(made_table({8, 16}), "fit.csv");
  std::string text = made_table({8});
  for (std::size_t at = text.find(",256,"); at != std::string::npos; at = text.find(",256,", at)) {
    text.replace(at, 5, ",288,");
  }
  const MeasurementTable more_experts = parse_measurements(text, "more.csv");
  const std::vector<MeasurementTable> tables = {fit, more_experts};
  const Calibration calibration(tables);
  const auto spread = [&](int degree) {
    std::string asked = made_table({degree});
    asked.replace(asked.find(",256,"), 5, ",288,");
    const MeasurementTable table = parse_measurements(asked, "asked.csv");
    const Forecast forecast = calibration.predict(table.times[0].curve, table.times[0].observation);
    EXPECT_EQ(forecast.novelty, Novelty::kSetting);
    return forecast.high_us / forecast.low_us;
  };
  EXPECT_LT(spread(16), spread(64));
}

TEST(Calibration, TellsCallsInsideADomainFromThoseAcross) {
  const MeasurementTable table = parse_measurements(made_table({8, 16}), "t.csv");
  EXPECT_EQ(table.times.front().observation.point.position.back(), 0.0);
  EXPECT_EQ(table.times.back().observation.point.position.back(), 1.0);
}

TEST(Calibration, FarForecastsAreLessSure) {
  const MeasurementTable fit = parse_measurements(made_table({8, 16}), "fit.csv");
  const Calibration calibration({&fit, 1});
  const auto spread = [&](int degree) {
    const MeasurementTable table = parse_measurements(made_table({degree}), "other.csv");
    const Forecast forecast = calibration.predict(table.times[6].curve, table.times[6].observation);
    return forecast.high_us / forecast.low_us;
  };
  EXPECT_GT(spread(1024), spread(32));
}

TEST(Calibration, IsUnsureOfWhatNoMeasurementTells) {
  // All inside a domain: what leaving it costs is a prior, and a forecast across domains says so.
  const MeasurementTable inside = parse_measurements(made_table({8}), "inside.csv");
  const MeasurementTable both = parse_measurements(made_table({8, 64}), "both.csv");
  const MeasurementTable wanted = parse_measurements(made_table({32}), "wanted.csv");
  const auto spread = [&](const MeasurementTable& fit) {
    const Calibration calibration({&fit, 1});
    const Forecast forecast = calibration.predict(wanted.times[6].curve, wanted.times[6].observation);
    return forecast.high_us / forecast.low_us;
  };
  EXPECT_GT(spread(inside), 1.3 * spread(both));
  const TableErrors errors = evaluate(Calibration({&inside, 1}), wanted);
  EXPECT_GE(errors.coverage_90, 0.75);
}

TEST(MeasurementTable, ErrorsNameFileLineAndColumn) {
  const std::string header = kLowLatencyHeader;
  EXPECT_NE(table_error(header + "h100_sxm,1,8,1,7168,8,256,x,1,1\n").find("t.csv:2: tokens_per_rank is 'x'"),
            std::string::npos);
  EXPECT_NE(table_error(header + "h100_sxm,1,8\n").find("t.csv:2: 3 cells under 10 columns"), std::string::npos);
  EXPECT_NE(table_error(header + "h100_sxm,1,8,1,7168,8,4,1,1,1\n").find("topk is larger"), std::string::npos);
  EXPECT_NE(table_error(header + "h100_sxm,1,8,1,7168,8,256,1,0,1\n").find("dispatch_us is 0"), std::string::npos);
  EXPECT_NE(table_error("a,b\n1,2\n").find("no column tells what was measured"), std::string::npos);
  EXPECT_NE(table_error("a,a\n1,2\n").find("column a is there twice"), std::string::npos);
  EXPECT_NE(table_error(header).find("there is no measurement"), std::string::npos);
  EXPECT_THROW((void)read_measurements("none/such.csv"), Error);
}

TEST(MeasurementTable, ReadsWhatSpreadsheetsWrite) {
  const std::string header = kLowLatencyHeader;
  const std::string line = "h100_sxm,1,8,1,7168,8,256,64,20,30\n";
  const MeasurementTable plain = parse_measurements(header + line, "t.csv");
  std::string crlf = header + line;
  for (std::size_t at = 0; (at = crlf.find('\n', at)) != std::string::npos; at += 2) crlf.insert(at, "\r");
  const std::string spaced = "  h100_sxm , 1,8 ,1,7168, 8,256,64 , 20, 30 \n";
  const std::string quoted = "\"h100_sxm\",\"1\",8,1,7168,8,256,64,20,30\n";
  for (const std::string& text :
       {crlf, "\xef\xbb\xbf" + header + line, header + spaced, header + quoted, "\n" + header + "\n" + line + "\n"}) {
    const MeasurementTable table = parse_measurements(text, "t.csv");
    ASSERT_EQ(table.times.size(), plain.times.size()) << text;
    EXPECT_EQ(table.times[0].observation.point.path, plain.times[0].observation.point.path) << text;
    EXPECT_EQ(table.times[1].observation.us, plain.times[1].observation.us) << text;
  }
  const MeasurementTable turned = parse_measurements(
      "combine_us,note,tokens_per_rank,num_experts,topk,hidden,ep_size,system,dispatch_us,wall_s,version\n"
      "30,any,64,256,8,7168,8,h100_sxm,20,1,1\n",
      "t.csv");
  EXPECT_EQ(turned.times.at(0).observation.us, plain.times[0].observation.us);
  EXPECT_EQ(turned.times[0].observation.point.position, plain.times[0].observation.point.position);
}

TEST(MeasurementTable, RefusesWhatItWouldMisread) {
  const std::string header = kLowLatencyHeader;
  EXPECT_NE(table_error("").find("there is no measurement"), std::string::npos);
  EXPECT_NE(table_error("ep_size,dispatch_ms,combine_us\n8,1,1\n").find("name it dispatch_us"), std::string::npos);
  EXPECT_NE(table_error("ep_size;dispatch_us;combine_us\n8;1;1\n").find("separate cells by commas"), std::string::npos);
  EXPECT_NE(table_error("ep_size,dispatch_us\r8,1\r").find("end them with a line feed"), std::string::npos);
  EXPECT_NE(table_error("ep_size,dispatch_us\n8,1\n").find("t.csv:2: tokens_per_rank is missing"), std::string::npos);
  for (const std::string cell : {"", "nan", "inf", "-1", "12us", "1e99"}) {
    EXPECT_NE(table_error(header + "h100_sxm,1,8,1,7168,8,256,64," + cell + ",1\n").find("t.csv:2: dispatch_us is"),
              std::string::npos)
        << cell;
  }
}

TEST(MeasurementTable, KnowsCollectivesPhasesAndGemms) {
  const MeasurementTable collectives = parse_measurements(
      "system,nccl_version,op,dtype,num_gpus,message_elems,latency_us\nb200_sxm,2.27,alltoall,half,8,1024,10\n",
      "n.csv");
  EXPECT_EQ(collectives.times.at(0).curve, "alltoall");
  EXPECT_DOUBLE_EQ(std::get<ExchangeWork>(collectives.times[0].observation.work).link_bytes, 2048 * 7 / 8.0);
  const MeasurementTable phases = parse_measurements(
      "kernel,phase,moe_dtype,ep_size,hidden,topk,num_experts,tokens_per_rank,latency_us\n"
      "NVLinkOneSided,dispatch,nvfp4,4,7168,8,256,128,17\n",
      "rows_gb200.csv");
  EXPECT_EQ(phases.times.at(0).curve, "one_sided dispatch");
  EXPECT_EQ(phases.times[0].observation.point.path.at(0), "gb200-nvl72");
  const MeasurementTable gemms = parse_measurements(
      "system,framework,kernel,moe_dtype,hidden,inter,topk,num_experts,ep_size,distribution,global_tokens,latency_us\n"
      "h100_sxm,a,b,fp8,4096,1536,8,128,4,balanced,16,232\n",
      "g.csv");
  EXPECT_EQ(gemms.times.at(0).curve, "gemm fp8");
  EXPECT_DOUBLE_EQ(std::get<GemmWork>(gemms.times[0].observation.work).rows, 32);
}

TEST(MeasurementTables, LeaveOutWhatHasNoModelAndSayWhere) {
  const std::string header =
      "system,framework,kernel,moe_dtype,hidden,inter,topk,num_experts,ep_size,distribution,global_tokens,latency_us\n";
  const std::string skewed = "h100_sxm,a,b,fp8,4096,1536,8,128,4,bimodal,16,232\n";
  const std::string mixed = "h100_sxm,a,b,w4afp8,4096,1536,8,128,4,balanced,16,232\n";
  const MeasurementTable table = parse_measurements(
      header + skewed + "h100_sxm,a,b,fp8,4096,1536,8,128,4,balanced,16,232\n" + mixed + skewed, "g.csv");
  EXPECT_EQ(table.num_rows, 1U);
  EXPECT_EQ(table.times.size(), 1U);
  ASSERT_EQ(table.left_out.size(), 2U);
  EXPECT_NE(table.left_out[0].find("g.csv:2: distribution is 'bimodal'"), std::string::npos) << table.left_out[0];
  EXPECT_NE(table.left_out[0].find("(2 lines)"), std::string::npos) << table.left_out[0];
  EXPECT_NE(table.left_out[1].find("g.csv:4: moe_dtype is 'w4afp8'"), std::string::npos) << table.left_out[1];
  try {
    (void)parse_measurements(header + skewed, "g.csv");
    FAIL() << "a table of nothing else was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << error.what();
  }
}

TEST(BenchRecord, GivesDispatchAndCombine) {
  const std::string record =
      R"({"config": {"hidden": 7168, "num_experts": 256, "top_k": 8, "dtype": "bf16", "layout": "token_major",
          "ranks": 2, "tokens": 4096, "sms": 16}, "gpu": {"name": "NVIDIA H200", "sms": 132, "used_gpus": 2},
          "results": [{"dispatcher": "direct", "phase": "dispatch", "median_us": 170},
                      {"dispatcher": "direct", "phase": "round_trip", "median_us": 380}]})";
  const MeasurementTable table = parse_bench_record(record, "r.json");
  ASSERT_EQ(table.times.size(), 1U);
  EXPECT_EQ(table.times[0].curve, "direct dispatch");
  EXPECT_EQ(table.times[0].observation.point.path.at(0), "h200-hgx");
  // Rows that travel as given are of two bytes, those that become fp8 on their way of one and their scales.
  const auto row_bytes = [&](const std::string& wire) {
    const std::string other = record.substr(0, 12) + R"("wire": )" + wire + ", " + record.substr(12);
    return std::get<ExchangeWork>(parse_bench_record(other, "r.json").times.at(0).observation.work).row_bytes;
  };
  EXPECT_EQ(row_bytes(R"("as-given")"), 2 * 7168);
  EXPECT_EQ(row_bytes("null"), 2 * 7168);
  EXPECT_EQ(row_bytes(R"("fp8")"), 7168 + 4 * 7168 / 128);
  EXPECT_EQ(row_bytes(R"("fp8-ue8m0")"), 7168 + 4 * 7168 / 128);
  const auto code_of = [](const char* text) {
    try {
      (void)parse_bench_record(text, "r.json");
    } catch (const Error& error) {
      return error.code();
    }
    return ErrorCode::kOk;
  };
  // Of other tools, or of ranks that share a GPU: whole, and of no use here.
  EXPECT_EQ(code_of("{}"), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of("[]"), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of(R"({"tool": "epistle tune", "results": []})"), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of(R"({"results": []})"), ErrorCode::kCorruptInput);
  EXPECT_THROW((void)parse_bench_record("[", "r.json"), Error);
}

TEST(BenchRecord, NamesTheFieldThatIsWrong) {
  const auto message_of = [](std::string_view wrong_config, std::string_view wrong_time) {
    const std::string record = fmt::format(
        R"({{"config": {{"hidden": 256, "num_experts": 8, "top_k": 2, "layout": "token_major", "tokens": 64, {}}},
            "gpu": null, "results": [{{"dispatcher": "direct", "phase": "combine", "median_us": {}}}]}})",
        wrong_config, wrong_time);
    try {
      (void)parse_bench_record(record, "r.json");
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruptInput) << error.what();
      return std::string(error.message());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message_of(R"("ranks": 2)", "9"), "no error");
  EXPECT_EQ(message_of(R"("ranks": "2")", "9"), "r.json: field config.ranks is \"2\", not a number");
  EXPECT_EQ(message_of(R"("ranks": 0)", "9"), "r.json: field config.ranks is 0, not from 1 to 268435456");
  EXPECT_EQ(message_of(R"("ranks": 2, "dtype": [])", "9"),
            "r.json: field config.dtype is array with 0 entries, not a text");
  EXPECT_EQ(message_of(R"("sizing": "exact")", "9"), "r.json: field config has no field 'ranks'");
  EXPECT_EQ(message_of(R"("ranks": 2)", "null"), "r.json: field results[0] has no field 'median_us'");
  EXPECT_EQ(message_of(R"("ranks": 2)", "1e400"),
            "r.json: a number in it is too large; those up to 1.8e308 can be read");
}

TEST(BenchRecord, CountsTheLayoutAsPartOfADispatchAndKnowsTheHost) {
  const std::string record =
      R"({"tool": "epistle bench", "config": {"hidden": 256, "num_experts": 8, "top_k": 2, "dtype": "bf16",
          "layout": "token_major", "ranks": 2, "tokens": 64, "workers": 1, "sizing": "exact"}, "gpu": null,
          "results": [{"dispatcher": "direct", "phase": "layout", "median_us": 5},
                      {"dispatcher": "direct", "phase": "dispatch", "median_us": 7},
                      {"dispatcher": "direct", "phase": "combine", "median_us": 9}]})";
  const MeasurementTable table = parse_bench_record(record, "r.json");
  ASSERT_EQ(table.times.size(), 2U);
  EXPECT_DOUBLE_EQ(table.times[0].observation.us, 12);
  EXPECT_EQ(table.times[0].observation.point.path.at(0), "host");
}

TEST(Calibration, TellsTheStartOfRowsFromTheExchangeOfCounts) {
  // Only across domains, with the exchange of counts by itself: what a call inside one takes follows.
  std::string text =
      "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,num_sms,dispatch_transmit_us,"
      "dispatch_notify_us\n";
  for (const int degree : {16, 32}) {
    for (const int tokens : {1, 2, 4, 8}) {
      const int far = degree / 8 - 1;
      text += "h100_sxm,1," + std::to_string(degree) + ",2,7168,8,256," + std::to_string(tokens) + ",20," +
              std::to_string(19 + 6 * far) + "," + std::to_string(20 + 10 * far) + "\n";
    }
  }
  const MeasurementTable fit = parse_measurements(text, "far.csv");
  EXPECT_EQ(fit.num_rows, 8U);
  const MeasurementTable near = parse_measurements(
      "system,version,ep_size,node_num,hidden,topk,num_experts,tokens_per_rank,num_sms,dispatch_us\n"
      "h100_sxm,1,8,1,7168,8,256,1,20,19\n",
      "near.csv");
  const TableErrors errors = evaluate(Calibration({&fit, 1}), near);
  EXPECT_EQ(errors.num_times, 1U);
  // The prior of the start (26 us) counts beside eight rows.
  EXPECT_LT(errors.median_ape, 20.0);
  // Of what is fitted the parts are not counted twice.
  EXPECT_EQ(evaluate(Calibration({&fit, 1}), fit).num_times, 8U);
}

}  // namespace
}  // namespace epistle::test
