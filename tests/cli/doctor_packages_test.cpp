// epistle doctor --python: every outcome that a package of another dispatcher may have, with fakes that have it.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/epistle_command.hpp"
#include "cli/fake_packages.hpp"
#include "support/python.hpp"

namespace epistle::test {
namespace {

using Proof = nlohmann::json;

/// What doctor finds of `package` where `fakes` are the packages that there are.
Proof prove(const std::string& package, const std::vector<std::string>& fakes, const FakeSettings& settings = {},
            const std::string& limit_s = "20") {
  const CommandResult result = run_with_fakes(
      {"doctor", "--skip-own", "--json", "-", "--python", "python3", "--packages", package, "--time-limit", limit_s},
      fakes, settings);
  EXPECT_EQ(result.exit_code, 0) << result.describe();
  const Proof report = Proof::parse(result.out, nullptr, false);
  for (const Proof& backend : report.is_object() ? report.at("backends") : Proof::array()) {
    if (backend.at("name") == package) return backend;
  }
  ADD_FAILURE() << "no backend " << package << "\n" << result.describe();
  return {};
}

std::string levels_of(const Proof& proof) {
  std::string text;
  for (const char* const level : {"imported", "initialised", "steady"}) {
    const Proof& value = proof.at("levels").at(level);
    text += value.is_null() ? '-' : value.get<bool>() ? 'y' : 'n';
  }
  return text;
}

bool mentions(const Proof& proof, const std::string& part) {
  return proof.at("reason").get<std::string>().find(part) != std::string::npos;
}

class DoctorPackages : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_python()) GTEST_SKIP() << "python3 is not installed";
  }
};

TEST_F(DoctorPackages, OneThatWorksIsProvedSteady) {
  const Proof proof = prove("deepep", {"deep_ep"});
  EXPECT_EQ(levels_of(proof), "yyy") << proof;
  EXPECT_EQ(proof.at("proved"), "steady");
  EXPECT_EQ(proof.at("available"), true);
  EXPECT_EQ(proof.at("version"), "1.2.1");
  EXPECT_EQ(proof.at("reason"), "");
  const Proof nccl = prove("ncclep", {"nccl"});
  EXPECT_EQ(levels_of(nccl), "yyy") << nccl;
  EXPECT_EQ(nccl.at("version"), "0.1.0");
}

TEST_F(DoctorPackages, OneThatIsMissingIsToldWithItsFix) {
  const Proof proof = prove("hybridep", {});
  EXPECT_EQ(levels_of(proof), "n--") << proof;
  EXPECT_EQ(proof.at("available"), false);
  EXPECT_TRUE(mentions(proof, "No module named 'deep_ep'")) << proof;
  EXPECT_NE(proof.at("fix").get<std::string>().find("hybrid-ep"), std::string::npos);
  // The package is there, and the class that engines want is not.
  EXPECT_TRUE(mentions(prove("hybridep", {"deep_ep"}), "deep_ep has no HybridEPBuffer"));
}

TEST_F(DoctorPackages, TheLevelThatFailsIsTheOneThatIsNamed) {
  const std::vector<std::pair<std::string, std::string>> cases = {{"import-fail", "n--"},   {"import-segfault", "n--"},
                                                                  {"import-exit", "n--"},   {"init-fail", "yn-"},
                                                                  {"init-segfault", "yn-"}, {"iterations-fail", "yyn"}};
  for (const auto& [outcome, levels] : cases) {
    const Proof proof = prove("deepep", {"deep_ep"}, {.outcome = outcome});
    EXPECT_EQ(levels_of(proof), levels) << outcome << ": " << proof;
    EXPECT_EQ(proof.at("available"), false) << outcome;
    EXPECT_NE(proof.at("fix"), "") << outcome;
    if (outcome.ends_with("-fail")) {
      EXPECT_TRUE(mentions(proof, "RuntimeError: fake failure of ")) << proof;
    }
    if (outcome.ends_with("-segfault")) {
      EXPECT_TRUE(mentions(proof, "signal 11")) << proof;
    }
    if (outcome.ends_with("-exit")) {
      EXPECT_TRUE(mentions(proof, "exited with code 42")) << proof;
    }
  }
}

TEST_F(DoctorPackages, AHangIsEndedAndNamed) {
  const Proof proof = prove("deepep", {"deep_ep"}, {.outcome = "init-hang"}, "2");
  EXPECT_EQ(levels_of(proof), "yn-") << proof;
  EXPECT_TRUE(mentions(proof, "making its buffers did not end within 2 s")) << proof;
}

TEST_F(DoctorPackages, ARankThatDiesIsBlamedAndNotTheOneThatWaitsForIt) {
  const Proof proof = prove("deepep", {"deep_ep"}, {.outcome = "iterations-segfault", .rank = "1"});
  EXPECT_EQ(levels_of(proof), "yyn") << proof;
  EXPECT_TRUE(mentions(proof, "running iterations was ended by signal 11")) << proof;
}

TEST_F(DoctorPackages, WrongOutputsAreNoSteadyIterations) {
  const Proof rows = prove("deepep", {"deep_ep"}, {.outcome = "wrong-rows"});
  EXPECT_EQ(levels_of(rows), "yyn") << rows;
  EXPECT_TRUE(mentions(rows, "is none of those that belong to it")) << rows;
  const Proof sums = prove("deepep", {"deep_ep"}, {.outcome = "wrong-sums"});
  EXPECT_EQ(levels_of(sums), "yyn") << sums;
  EXPECT_TRUE(mentions(sums, "it must be")) << sums;
}

TEST_F(DoctorPackages, WithoutGpusBuffersAreNotTriedWhichIsNoFailure) {
  const Proof proof = prove("deepep", {"deep_ep"}, {.num_gpus = "0"});
  EXPECT_EQ(levels_of(proof), "y--") << proof;
  EXPECT_EQ(proof.at("available"), true);
  EXPECT_TRUE(mentions(proof, "torch sees 0")) << proof;
  // What doctor writes, select reads: an import that nothing speaks against counts.
  const TempDir dir;
  const std::string file = dir.file("doctor.json");
  ASSERT_EQ(run_with_fakes({"doctor", "--skip-own", "--python", "python3", "--packages", "deepep", "--json", file},
                           {"deep_ep"}, {.num_gpus = "0"})
                .exit_code,
            0);
  const CommandResult select = run_epistle(
      {"select", "--hardware", "h100-hgx", "--ep", "16", "--model", "qwen3-30b", "--doctor", file, "--json"});
  ASSERT_EQ(select.exit_code, 0) << select.describe();
  EXPECT_EQ(Proof::parse(select.out).at("candidates").at(0).at("backend"), "deepep");
}

TEST_F(DoctorPackages, NamesThatAreNoneAreRefused) {
  const CommandResult result = run_epistle({"doctor", "--packages", "deepeep"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_TRUE(is_error_line(result.err, "--packages names 'deepeep'")) << result.err;
}

}  // namespace
}  // namespace epistle::test
