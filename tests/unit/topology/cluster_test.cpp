#include "topology/cluster.hpp"

#include <set>
#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "support/temp_dir.hpp"

namespace epistle::test {
namespace {

/// The message of the error that reading `text` ends with.
std::string parse_error(const std::string& text) {
  try {
    (void)parse_cluster(text, "rack.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruptInput);
    return std::string(error.message());
  }
  return "";
}

TEST(Cluster, PresetsAreSoundAndSayWhereTheyComeFrom) {
  std::set<std::string> names;
  for (const Cluster& cluster : cluster_presets()) {
    SCOPED_TRACE(cluster.name);
    EXPECT_NO_THROW(check_cluster(cluster));
    EXPECT_TRUE(names.insert(cluster.name).second);
    for (const Constant& constant : cluster.constants) {
      EXPECT_FALSE(constant.source.empty());
      EXPECT_FALSE(constant.date.empty());
    }
    EXPECT_EQ(find_cluster(cluster.name).name, cluster.name);
  }
  for (const char* const name : {"h100-hgx", "h200-hgx", "b200", "b300", "gb200-nvl72", "gb300-nvl72", "h20", "a100",
                                 "rtx-pro-6000", "mi300x", "unknown", "host"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

TEST(Cluster, IsFoundByAliasIgnoringCase) {
  EXPECT_EQ(find_cluster("H100_SXM").name, "h100-hgx");
  EXPECT_EQ(find_cluster("gb200").name, "gb200-nvl72");
  EXPECT_THROW((void)find_cluster("h100,h100_sxm"), Error);
  EXPECT_THROW((void)find_cluster(""), Error);
}

TEST(Cluster, KnowsItsCardsAndRails) {
  Cluster cluster = find_cluster("h100-hgx");
  EXPECT_EQ(cluster.nics_per_domain(), 8);
  EXPECT_EQ(cluster.gpus_per_nic(), 1);
  EXPECT_EQ(cluster.num_rails(), 8);
  // Two GPUs share a card, and so a rail.
  cluster.constant(ClusterField::kNicsPerGpu).value = 0.5;
  EXPECT_EQ(cluster.nics_per_domain(), 4);
  EXPECT_EQ(cluster.gpus_per_nic(), 2);
  EXPECT_EQ(cluster.num_rails(), 4);
  // Both cards of a GPU are on its rail.
  cluster.constant(ClusterField::kNicsPerGpu).value = 2;
  EXPECT_EQ(cluster.nics_per_domain(), 16);
  EXPECT_EQ(cluster.num_rails(), 8);
  EXPECT_EQ(find_cluster("host").num_rails(), 0);
}

TEST(Cluster, FieldsStandInTheirOrder) {
  ASSERT_EQ(cluster_fields().size(), kNumClusterFields);
  for (std::size_t idx = 0; idx < kNumClusterFields; ++idx) {
    EXPECT_EQ(static_cast<std::size_t>(cluster_fields()[idx].field), idx);
  }
}

TEST(Cluster, JsonOverridesAPreset) {
  const Cluster cluster = parse_cluster(
      R"({"name": "ours", "preset": "h200-hgx", "nics_per_gpu": 2, "multicast": false,
          "link_bytes_per_s": {"value": 371e9, "source": "own measurement", "date": "2026-11-21"}})",
      "rack.json");
  EXPECT_EQ(cluster.name, "ours");
  EXPECT_EQ(measured_name(cluster), "h200-hgx");
  EXPECT_EQ(cluster.gpu_architecture, "sm_90");
  EXPECT_EQ(cluster.num_sms(), 132);
  EXPECT_EQ(cluster.network_bytes_per_s(), 100e9);
  EXPECT_EQ(cluster.value(ClusterField::kMulticast), 0.0);
  EXPECT_EQ(cluster.constant(ClusterField::kLinkBytesPerS).source, "own measurement");
  EXPECT_EQ(cluster.constant(ClusterField::kLinkBytesPerS).date, "2026-11-21");
  EXPECT_EQ(cluster.constant(ClusterField::kNicsPerGpu).source, "rack.json");
}

TEST(Cluster, ErrorsNameFileAndField) {
  EXPECT_EQ(parse_error("{"), "rack.json: line 1 is not JSON");
  EXPECT_NE(parse_error("[]").find("must be an object"), std::string::npos);
  EXPECT_NE(parse_error(R"({"name": "a"})").find("rack.json: gpus_per_domain is missing"), std::string::npos);
  EXPECT_NE(parse_error(R"({"preset": "h1000"})").find("rack.json: preset there is no cluster 'h1000'"),
            std::string::npos);
  const std::string start = R"({"preset": "b200", )";
  EXPECT_NE(parse_error(start + R"("link_speed": 1})").find("rack.json: link_speed is not a field"), std::string::npos);
  EXPECT_NE(parse_error(start + R"("link_bytes_per_s": "fast"})").find("link_bytes_per_s must be a number"),
            std::string::npos);
  EXPECT_NE(parse_error(start + R"("link_bytes_per_s": {"source": "x"}})").find("without a value"), std::string::npos);
  EXPECT_NE(parse_error(start + R"("link": "token ring"})").find("it must be nvlink"), std::string::npos);
  // A slip of the unit.
  EXPECT_NE(parse_error(start + R"("link_bytes_per_s": 900})").find("rack.json: link_bytes_per_s is 900; it must be"),
            std::string::npos);
  EXPECT_NE(parse_error(start + R"("gpus_per_domain": 7.5})").find("a whole number"), std::string::npos);
  EXPECT_NE(parse_error(start + R"("hbm_bytes": 1e999})").find("rack.json"), std::string::npos);
}

TEST(Cluster, AFileThatIsNotThereIsNotFound) {
  const TempDir dir;
  try {
    (void)read_cluster(dir.file("none.json"));
    FAIL() << "read a file that is not there";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  }
  EXPECT_EQ(read_cluster(dir.write("rack.json", R"({"preset": "h20"})")).num_sms(), 78);
}

}  // namespace
}  // namespace epistle::test
