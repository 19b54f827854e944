// nin_classify: classifies images in this process, by LibTorch.

#include "nin/classifier.h"
#include "tool.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Classifies images by a TorchScript or .pt2 export, in process.\n"
      "  nin_classify boot.png shirt.jpg\n"
      "  nin_classify t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz --format csv\n",
      "nin_classify");
  nin::tool::Options options;
  nin::Options classifier;
  std::string model = "artifacts/fashion_mnist.pt";
  int threads = 0;
  bool no_replay = false;
  nin::tool::add_options(app, options);
  app.add_option("--model", model, "TorchScript or .pt2 export of any model")
      ->type_name("FILE")
      ->capture_default_str();
  app.add_option("--device", classifier.device, "cpu, cuda or cuda:N")
      ->type_name("D")
      ->capture_default_str();
  app.add_option("--threads", threads, "threads inside one call; every core if not given")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
  app.add_flag("--no-replay", no_replay, "trust the file: don't run its golden vectors first");
  return nin::tool::run(app, argc, argv, [&] {
    nin::tool::classify_files(options, [&] {
      if (threads != 0) nin::set_threads(threads);
      classifier.replay = !no_replay;
      return nin::tool::Backend{model + " on " + classifier.device,
                                std::make_shared<nin::Classifier>(model, classifier)};
    });
  });
}
