/* A real app would get a push notification from its backend; this page polls the status. */
setInterval(async () => {
  try {
    const status = await (await fetch("/phone/status")).json();
    if ((status.connected ? "yes" : "no") !== document.body.dataset.connected) location.reload();
  } catch { /* The demo has ended. */ }
}, 2000);
