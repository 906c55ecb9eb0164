import { defineConfig } from "vite";

// .mjs is unknown to some servers, and browsers run no script that does not come with a script's content type
const names = {
  assetFileNames: ({ names: [name] }) => `assets/[name]-[hash]${name.endsWith(".mjs") ? ".js" : "[extname]"}`,
};
// With these two headers a page may use threads (SharedArrayBuffer). Any server that sends them will do.
const isolation = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

export default defineConfig({
  base: "./", // the built folder may lie anywhere on a server
  appType: "mpa", // a file that is missing is an error 404, not the page again
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm"] },
  worker: { format: "es", rolldownOptions: { output: names } },
  build: {
    target: "es2022",
    chunkSizeWarningLimit: 1000,
  },
  preview: { headers: isolation, strictPort: true },
});
