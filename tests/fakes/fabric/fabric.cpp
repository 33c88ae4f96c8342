// A libfabric that registers GPU memory: the machine's own, whose providers are said to (FI_HMEM), and whose memory of
// "GPUs" is memory of the host. EPISTLE_FAKE_HMEM=refuse: registering it fails, as in a libfabric without CUDA. What
// was registered as memory of a GPU is counted for the test (epistle_fake_gpu_regions).
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <list>
#include <map>
#include <mutex>

#include <dlfcn.h>

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_errno.h>

namespace {

void* real_library() {
  static void* const library = ::dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
  return library;
}

template <typename Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(real_library(), name));
}

std::atomic<int> num_gpu_regions{0};

// The tables of functions are the provider's and shared: objects get copies, whose originals are called.
struct Tables {
  std::mutex mutex;
  std::map<const fid*, fi_ops_fabric*> fabrics;
  std::map<const fid*, fi_ops_mr*> memories;
  std::map<const fid*, fi_ops_domain*> domains;
  std::list<fi_ops_fabric> fabric_copies;
  std::list<fi_ops_mr> memory_copies;
  std::list<fi_ops_domain> domain_copies;
};

Tables& tables() {
  static auto* const all = new Tables();
  return *all;
}

/// What `object` had in place of its copy.
template <typename Ops>
Ops* original_of(const std::map<const fid*, Ops*>& originals, const fid* object) {
  const std::lock_guard lock(tables().mutex);
  return originals.at(object);
}

/// What the provider is asked for, without what only this library says that it has.
class WithoutHmem {
 public:
  explicit WithoutHmem(fi_info* info) : info_(info), caps_(info->caps) { info->caps &= ~FI_HMEM; }
  ~WithoutHmem() { info_->caps = caps_; }
  WithoutHmem(const WithoutHmem&) = delete;
  WithoutHmem& operator=(const WithoutHmem&) = delete;

 private:
  fi_info* info_;
  std::uint64_t caps_;
};

int register_any(fid* domain, const fi_mr_attr* attributes, std::uint64_t flags, fid_mr** region) {
  fi_mr_attr of_host = *attributes;
  if (attributes->iface == FI_HMEM_CUDA) {
    const char* const how = std::getenv("EPISTLE_FAKE_HMEM");
    if (how != nullptr && std::strcmp(how, "refuse") == 0) return -FI_ENOSYS;
    of_host.iface = FI_HMEM_SYSTEM;
    of_host.device = {};
    ++num_gpu_regions;
  }
  return original_of(tables().memories, domain)->regattr(domain, &of_host, flags, region);
}

int open_endpoint(fid_domain* domain, fi_info* info, fid_ep** endpoint, void* context) {
  const WithoutHmem without(info);
  return original_of(tables().domains, &domain->fid)->endpoint(domain, info, endpoint, context);
}

int open_domain(fid_fabric* fabric, fi_info* info, fid_domain** domain, void* context) {
  const WithoutHmem without(info);
  const int status = original_of(tables().fabrics, &fabric->fid)->domain(fabric, info, domain, context);
  if (status != 0) return status;
  const std::lock_guard lock(tables().mutex);
  tables().memories[&(*domain)->fid] = (*domain)->mr;
  fi_ops_mr& of_memory = tables().memory_copies.emplace_back(*(*domain)->mr);
  of_memory.regattr = register_any;
  (*domain)->mr = &of_memory;
  tables().domains[&(*domain)->fid] = (*domain)->ops;
  fi_ops_domain& of_domain = tables().domain_copies.emplace_back(*(*domain)->ops);
  of_domain.endpoint = open_endpoint;
  (*domain)->ops = &of_domain;
  return 0;
}

}  // namespace

extern "C" {

int epistle_fake_gpu_regions() { return num_gpu_regions.load(); }

int fi_getinfo(std::uint32_t version, const char* node, const char* service, std::uint64_t flags, const fi_info* hints,
               fi_info** infos) {
  const bool of_gpus = hints != nullptr && (hints->caps & FI_HMEM) != 0;
  fi_info* asked = hints != nullptr ? real<fi_info*(const fi_info*)>("fi_dupinfo")(hints) : nullptr;
  if (of_gpus) {
    asked->caps &= ~FI_HMEM;
    asked->domain_attr->mr_mode &= ~FI_MR_HMEM;
  }
  const int status = real<decltype(fi_getinfo)>("fi_getinfo")(version, node, service, flags, asked, infos);
  if (asked != nullptr) real<void(fi_info*)>("fi_freeinfo")(asked);
  for (fi_info* info = status == 0 && of_gpus ? *infos : nullptr; info != nullptr; info = info->next) {
    info->caps |= FI_HMEM;
  }
  return status;
}

void fi_freeinfo(fi_info* info) { real<void(fi_info*)>("fi_freeinfo")(info); }

fi_info* fi_dupinfo(const fi_info* info) { return real<fi_info*(const fi_info*)>("fi_dupinfo")(info); }

int fi_fabric(fi_fabric_attr* attributes, fid_fabric** fabric, void* context) {
  const int status = real<decltype(fi_fabric)>("fi_fabric")(attributes, fabric, context);
  if (status != 0) return status;
  const std::lock_guard lock(tables().mutex);
  if ((*fabric)->ops->domain == open_domain) return 0;  // the provider gives one object to all who ask
  tables().fabrics[&(*fabric)->fid] = (*fabric)->ops;
  fi_ops_fabric& copy = tables().fabric_copies.emplace_back(*(*fabric)->ops);
  copy.domain = open_domain;
  (*fabric)->ops = &copy;
  return 0;
}

const char* fi_strerror(int code) { return real<const char*(int)>("fi_strerror")(code); }

std::uint32_t fi_version() { return real<std::uint32_t()>("fi_version")(); }
}
