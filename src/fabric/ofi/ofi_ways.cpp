#include "fabric/ofi/ofi_ways.hpp"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include <netinet/in.h>
#include <sys/socket.h>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>

#include "epistle/error.hpp"

#include "core/kept_signals.hpp"
#include "fabric/rails.hpp"

namespace epistle::ofi {
namespace {

std::string text_of(const char* text) { return text != nullptr ? text : ""; }

std::string address_of(const fi_info& info) {
  if (info.src_addr == nullptr) return {};
  std::array<char, INET6_ADDRSTRLEN> text{};
  const auto* const address = static_cast<const sockaddr*>(info.src_addr);
  const void* bytes = nullptr;
  if (info.addr_format == FI_SOCKADDR_IN || (info.addr_format == FI_SOCKADDR && address->sa_family == AF_INET)) {
    bytes = &static_cast<const sockaddr_in*>(info.src_addr)->sin_addr;
  } else if (info.addr_format == FI_SOCKADDR_IN6 ||
             (info.addr_format == FI_SOCKADDR && address->sa_family == AF_INET6)) {
    bytes = &static_cast<const sockaddr_in6*>(info.src_addr)->sin6_addr;
  }
  if (bytes == nullptr) return {};
  const int family = info.addr_format == FI_SOCKADDR_IN ? AF_INET : address->sa_family;
  return ::inet_ntop(family, bytes, text.data(), text.size()) != nullptr ? text.data() : "";
}

/// `of_gpus`: of providers that register memory of GPUs (FI_HMEM), which they say only where they are asked.
InfoList find_infos(const FabricRequest& request, bool of_gpus = false) {
  const OfiApi& api = load_ofi();
  InfoList hints = own_info(api.duplicate_info(nullptr));
  if (hints == nullptr) throw Error(ErrorCode::kOutOfMemory, "libfabric has no memory for its hints");
  hints->caps = FI_RMA | FI_WRITE | FI_REMOTE_WRITE;
  if (of_gpus) hints->caps |= FI_HMEM;
  hints->mode = FI_CONTEXT | FI_CONTEXT2;
  hints->ep_attr->type = FI_EP_RDM;
  hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
  if (of_gpus) hints->domain_attr->mr_mode |= FI_MR_HMEM;
  hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
  hints->tx_attr->op_flags = FI_DELIVERY_COMPLETE;
  if (!request.provider.empty()) hints->fabric_attr->prov_name = ::strdup(request.provider.c_str());
  fi_info* found = nullptr;
  const KeptSignals signals;  // providers are loaded here
  const int status = api.get_info(FI_VERSION(1, 14), nullptr, nullptr, 0, hints.get(), &found);
  InfoList infos = own_info(found);
  if (status != 0 && status != -FI_ENODATA) require(status, "fi_getinfo");
  return infos;
}

}  // namespace

FabricWay way_of(const fi_info& info) {
  const std::uint64_t order = info.tx_attr->msg_order;
  return {.provider = text_of(info.fabric_attr->prov_name),
          .fabric = text_of(info.fabric_attr->name),
          .domain = text_of(info.domain_attr->name),
          .address = address_of(info),
          .is_ordered = ((order & FI_ORDER_WAW) != 0 || (order & FI_ORDER_RMA_WAW) != 0) &&
                        info.ep_attr->max_order_waw_size >= info.ep_attr->max_msg_size,
          .needs_local_keys = (info.domain_attr->mr_mode & FI_MR_LOCAL) != 0,
          .reaches_gpu_memory = (info.caps & FI_HMEM) != 0};
}

namespace {

/// The entry of a provider that registers GPU memory for the same card; null where there is none.
const fi_info* find_same_way(const fi_info* infos, const FabricWay& way) {
  for (const fi_info* info = infos; info != nullptr; info = info->next) {
    const FabricWay other = way_of(*info);
    if (other.provider == way.provider && other.domain == way.domain && other.address == way.address) return info;
  }
  return nullptr;
}

}  // namespace

InfoList choose_info(const FabricRequest& request) {
  const InfoList infos = find_infos(request);
  std::vector<const fi_info*> entries;
  std::vector<FabricWay> ways;
  for (const fi_info* info = infos.get(); info != nullptr; info = info->next) {
    entries.push_back(info);
    ways.push_back(way_of(*info));
  }
  const std::size_t chosen = choose_rail(ways, request);
  if (request.gpu_memory) {
    // What does not reach GPU memory is taken all the same: rows of GPUs are staged then.
    const InfoList of_gpus = find_infos(request, true);
    const fi_info* const same = find_same_way(of_gpus.get(), ways[chosen]);
    if (same != nullptr) return own_info(load_ofi().duplicate_info(same));
  }
  return own_info(load_ofi().duplicate_info(entries[chosen]));
}

}  // namespace epistle::ofi

namespace epistle {

std::vector<FabricWay> list_fabric_ways(const FabricRequest& request) {
  std::vector<FabricWay> ways;
  const ofi::InfoList infos = ofi::find_infos(request);
  const ofi::InfoList of_gpus = ofi::find_infos(request, true);
  for (const fi_info* info = infos.get(); info != nullptr; info = info->next) {
    FabricWay way = ofi::way_of(*info);
    for (const fi_info* other = of_gpus.get(); other != nullptr; other = other->next) {
      const FabricWay of_gpu = ofi::way_of(*other);
      way.reaches_gpu_memory =
          way.reaches_gpu_memory || (of_gpu.provider == way.provider && of_gpu.domain == way.domain);
    }
    ways.push_back(std::move(way));
  }
  return ways;
}

FabricWay choose_fabric_way(const FabricRequest& request) { return ofi::way_of(*ofi::choose_info(request)); }

}  // namespace epistle
