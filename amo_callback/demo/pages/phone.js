/* A real app would get a push notification from its backend; this page polls the version of its content. */
setInterval(async () => {
  try {
    const {version} = await (await fetch("/phone/version")).json();
    if (version !== document.body.dataset.version) location.reload();
  } catch { /* The demo has ended. */ }
}, 2000);
