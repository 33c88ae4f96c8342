// Which card a rank takes, of those that libfabric lists.
#include "fabric/rails.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

namespace epistle {
namespace {

FabricWay way(const std::string& provider, const std::string& domain, const std::string& address = "") {
  FabricWay made;
  made.provider = provider;
  made.domain = domain;
  made.address = address;
  return made;
}

std::string card_of(const std::vector<FabricWay>& ways, const FabricRequest& request) {
  const FabricWay& chosen = ways[choose_rail(ways, request)];
  return chosen.provider + " " + chosen.domain;
}

const std::vector<FabricWay> kEthernet = {way("tcp;ofi_rxm", "eth1", "10.2.0.1"),
                                          way("tcp;ofi_rxm", "eth0", "10.1.0.1"), way("tcp;ofi_rxm", "lo", "127.0.0.1"),
                                          way("shm", "shm")};
const std::vector<FabricWay> kInfiniBand = {way("verbs;ofi_rxm", "mlx5_10"), way("verbs;ofi_rxm", "mlx5_2"),
                                            way("verbs;ofi_rxm", "mlx5_10"), way("verbs;ofi_rxm", "mlx5_0"),
                                            way("tcp;ofi_rxm", "eth0", "10.1.0.1")};

TEST(Rails, TcpGoesOverTheCardThatTheHostsMeetOver) {
  for (const int rail : {0, 1, 5}) {
    EXPECT_EQ(card_of(kEthernet, {.address = "10.1.0.1", .rail = rail}), "tcp;ofi_rxm eth0");
  }
  EXPECT_EQ(card_of(kEthernet, {}), "tcp;ofi_rxm eth1");
}

TEST(Rails, RanksOfOneIndexTakeTheNamedCardOfOneIndex) {
  for (const std::vector<std::string>& nics : {std::vector<std::string>{"eth0", "eth1"}, {"10.1.0.1", "10.2.0.1"}}) {
    for (int rail = 0; rail < 6; ++rail) {
      EXPECT_EQ(card_of(kEthernet, {.address = "10.1.0.1", .nics = nics, .rail = rail}),
                rail % 2 == 0 ? "tcp;ofi_rxm eth0" : "tcp;ofi_rxm eth1");
    }
  }
}

TEST(Rails, CardsOfInfiniBandAreTakenInTheOrderOfTheirNumbers) {
  const std::vector<std::string> wanted = {"mlx5_0", "mlx5_2", "mlx5_10"};
  ASSERT_EQ(list_rails(kInfiniBand, {.address = "10.1.0.1"}).size(), wanted.size());
  for (int rail = 0; rail < 6; ++rail) {
    EXPECT_EQ(card_of(kInfiniBand, {.address = "10.1.0.1", .rail = rail}),
              "verbs;ofi_rxm " + wanted[static_cast<std::size_t>(rail % 3)]);
  }
}

TEST(Rails, CardsThatAreMissingAreAnErrorThatSaysWhatThereIs) {
  for (const std::vector<std::string>& nics : {std::vector<std::string>{"eth7"}, {"eth0", "eth7"}}) {
    try {
      (void)choose_rail(kEthernet, {.nics = nics});
      FAIL() << "a card was chosen";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
      const std::string text = error.what();
      EXPECT_NE(text.find("eth7"), std::string::npos) << text;
      EXPECT_NE(text.find("tcp;ofi_rxm over eth1 (10.2.0.1)"), std::string::npos) << text;
    }
  }
}

TEST(Rails, ProvidersOfOneHostAreTakenOnlyByName) {
  const std::vector<FabricWay> only_shm = {way("shm", "shm")};
  EXPECT_THROW((void)choose_rail(only_shm, {}), Error);
  EXPECT_EQ(card_of(only_shm, {.provider = "shm"}), "shm shm");
}

TEST(Rails, NamesAreSeparatedByCommas) {
  EXPECT_TRUE(parse_nics("").empty());
  EXPECT_EQ(parse_nics("eth0"), std::vector<std::string>({"eth0"}));
  EXPECT_EQ(parse_nics("mlx5_0,mlx5_1"), std::vector<std::string>({"mlx5_0", "mlx5_1"}));
  for (const char* const text : {",", "eth0,", ",eth0", "eth0,,eth1"})
    EXPECT_THROW((void)parse_nics(text), Error) << text;
}

}  // namespace
}  // namespace epistle
