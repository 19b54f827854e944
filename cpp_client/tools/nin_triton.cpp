// nin_triton: classifies images by a Triton server; needs no LibTorch.

#include "nin/triton_client.h"
#include "tool.h"

int main(int argc, char** argv) {
  CLI::App app(
      "Classifies images by a Triton server, over HTTP.\n"
      "  nin_triton boot.png shirt.jpg --url 127.0.0.1:8000\n"
      "  nin_triton t10k-images-idx3-ubyte.gz --model fashion_mnist --labels "
      "t10k-labels-idx1-ubyte.gz\n",
      "nin_triton");
  nin::tool::Options options;
  nin::TritonOptions server;
  nin::tool::add_options(app, options);
  app.add_option("--url", server.url, "the server's HTTP address")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--model", server.model, "its name; the server's only classifier if not given")
      ->type_name("NAME");
  app.add_option("--timeout", server.timeout_s, "seconds to wait for each answer")
      ->check(CLI::Range(0.001, 86'400.0))
      ->type_name("S")
      ->capture_default_str();
  return nin::tool::run(app, argc, argv, [&] {
    nin::tool::classify_files(options, [&] {
      const auto client = std::make_shared<nin::TritonClient>(server);
      return nin::tool::Backend{client->graph() + " at " + server.url, client};
    });
  });
}
