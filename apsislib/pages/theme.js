// Not a module, so that it runs before anything is shown: the chosen theme, without a flash of the other.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* storage is off: the system's preference stands */ }
